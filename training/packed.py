"""The file of the demonstration model as it is shipped: writing it, and reading it to train on."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..lance_model import nano
from .autoencoder import NarrowTAEHV
from .model import VISION, Trainee

VOCABULARY_NAMES = dict(zip(("language.embed_tokens.weight", "language.lm_head.weight"), nano.VOCABULARY_KEYS))


def packed_name(name: str) -> str:
    """A trainee's parameter, as the packed file names it."""
    return VOCABULARY_NAMES.get(name) or name.removeprefix("transformer.").removeprefix("language.")


def pack(path: Path, weights: dict[str, torch.Tensor], vae: dict[str, torch.Tensor], rows: list[int]) -> None:
    """Writes what `nano.unpack` reads, in 16 bits."""
    tensors = {nano.ROWS: torch.tensor(rows, dtype=torch.int32)}
    for name, weight in weights.items():
        tensors[packed_name(name)] = weight.to(torch.bfloat16).cpu()
    tensors |= {nano.VAE + name: weight.half().cpu().contiguous() for name, weight in vae.items()}
    settings = {
        "depth": VISION.layers,
        "num_heads": VISION.heads,
        "fullatt_block_indexes": list(VISION.full_attention),
    }
    save_file(tensors, path.with_suffix(".partial"), {"vision_config": json.dumps(settings)})
    path.with_suffix(".partial").replace(path)


def read_rows(path: Path) -> list[int]:
    """Rows of the vocabulary that a packed model has."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(nano.ROWS).tolist()


def read_trainee(path: Path, trainee: Trainee, rows: list[int]) -> None:
    """Takes the weights of a packed model; rows of the vocabulary that it lacks stay as they are."""
    stored_at = {row: i for i, row in enumerate(read_rows(path))}
    with safe_open(path, "pt") as file:
        known = [i for i, row in enumerate(rows) if row in stored_at]
        for name, weight in trainee.named_parameters():
            stored = file.get_tensor(packed_name(name)).float()
            if name in VOCABULARY_NAMES:
                weight.data[known] = stored[[stored_at[rows[i]] for i in known]]
            else:
                weight.data.copy_(stored)


def read_autoencoder(path: Path) -> NarrowTAEHV:
    """The autoencoder of a packed model, whose encoder whitens by itself."""
    model = NarrowTAEHV()
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(nano.VAE)]
        weights = {name.removeprefix(nano.VAE): file.get_tensor(name).float() for name in names}
    model.load_state_dict(weights, strict=False)
    return model.eval()
