"""The demonstration model that comes with the plugin: a Lance of 3 M numbers, trained on pictures of coloured shapes.

It is stored small: of the vocabulary only the rows that it uses, and its autoencoder without the channels that are
zero. `checkpoint` makes it a file that loads like any Lance. `training/` trains it from nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from comfy.taesd.taehv import TAEHV
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .checkpoint import CheckpointError
from .resolution import LANCE, Square, Trained

PACKED = Path(__file__).with_name("nano.safetensors")
VOCABULARY = 151936
VOCABULARY_KEYS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
ROWS = "vocabulary_rows"
VAE = "vae."
SIDE = 64  # pixels of the pictures and clips that it knows
RESOLUTION = Square(SIDE, 56)
TRAINED = Trained(RESOLUTION, RESOLUTION, (SIDE, SIDE), (SIDE, SIDE), frames=9)
MARK = "lance_demonstration"  # in the metadata of its file


def checkpoint(folder: Path) -> Path:
    """The demonstration model as a single-file checkpoint in `folder`, made unless it is there."""
    path = folder / f"lance_demonstration_{PACKED.stat().st_mtime_ns:x}.safetensors"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _write(path)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        reason = str(error).rpartition("I/O error: ")[2] if isinstance(error, SafetensorError) else error.strerror
        raise CheckpointError(
            f"The demonstration model cannot be written to {folder} ({reason}). Free about 130 MB there and make the "
            "folder writable."
        ) from None
    return path


def _write(path: Path) -> None:
    tensors, metadata = unpack(PACKED)
    metadata[MARK] = "yes"
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def trained(metadata: Mapping[str, str]) -> Trained:
    """What the model of a file is at its best in, by the file's metadata."""
    return TRAINED if MARK in metadata else LANCE


def unpack(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint from the packed file: experts in float32, vocabulary in bfloat16 and the
    autoencoder in float16."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        packed = {name: file.get_tensor(name) for name in file.keys()}
    rows = packed.pop(ROWS).long()
    vae = {name.removeprefix(VAE): packed.pop(name) for name in list(packed) if name.startswith(VAE)}
    tensors = {name: weight.float() for name, weight in packed.items()}
    for name in VOCABULARY_KEYS:
        tensors[name] = torch.zeros(VOCABULARY, packed[name].shape[1], dtype=torch.bfloat16)
        tensors[name][rows] = packed[name].to(torch.bfloat16)
    tensors |= {VAE + name: weight.half() for name, weight in widen(vae).items()}
    return tensors, metadata


def widen(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a TAEHV with fewer channels → those of ComfyUI's, zeros around them.

    Channels that are zero stay zero through ReLU, so both compute the same.
    """
    with torch.device("meta"):
        full = TAEHV(48).state_dict()
    out = {}
    for name, weight in weights.items():
        shape = full[name].shape
        out[name] = torch.zeros(shape)
        if weight.ndim == 1:
            out[name][: len(weight)] = weight
            continue
        # Channels of several frames side by side: a memory block's past, and pooling and growing in time.
        o, i = shape[:2]
        in_time = name.count(".") == 3
        in_groups = 2 if name.endswith(".conv.0.weight") else i // o if in_time and i > o else 1
        out_groups = o // i if in_time and o > i else 1
        room = out[name].view(out_groups, o // out_groups, in_groups, i // in_groups, *shape[2:])
        part = weight.view(out_groups, len(weight) // out_groups, in_groups, -1, *shape[2:])
        room[:, : part.shape[1], :, : part.shape[3]] = part
    return out
