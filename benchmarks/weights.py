"""Random weights of any size in the official layout, which plugin and reference both read.

The keys and shapes are those of the plugin's own modules, the values are drawn in bfloat16 as the official weights are
stored; a float32 file holds the same numbers. The vision encoder is a tiny one, so that what is timed is the decoder.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from comfyui_lance.dev.host import tiny_checkpoint
from comfyui_lance.lance_model.config import VisionConfig
from comfyui_lance.lance_model.language import LanceLanguage
from comfyui_lance.lance_model.transformer import LanceTransformer

VOCABULARY = 151936  # the tokenizer's, at every size: parameters are counted without embeddings and head
NORMS = ("norm", "norm1", "norm2", "ln_q", "norm_moe_gen", "layernorm", "layernorm_moe_gen")
DIMS = {
    "tiny": {"layers": 3, "hidden": 64, "inner": 96, "heads": 2, "kv_heads": 1, "head_dim": 32},
    "300m": {"layers": 14, "hidden": 768, "inner": 4128, "heads": 12, "kv_heads": 2, "head_dim": 64},
    "3b": {"layers": 36, "hidden": 2048, "inner": 11008, "heads": 16, "kv_heads": 2, "head_dim": 128},
}
STORED = {torch.bfloat16: "BF16", torch.float32: "F32"}  # names in a header
VISION = VisionConfig(hidden=64, layers=4, inner=96, out_hidden=0, heads=2, full_attention=(1, 3))
FULL_VISION = VisionConfig(hidden=1280, layers=32, inner=3420, out_hidden=0, heads=16, full_attention=(7, 15, 23, 31))

Shapes = dict[str, torch.Size]


def _random(key: str, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Norms around 1, biases at 0.1, embeddings at 1, the rest at 1/sqrt(fan-in)."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    layer, kind = key.split(".")[-2:]
    if layer in NORMS:
        noise = 1 + 0.1 * noise
    elif kind == "bias":
        noise *= 0.1
    elif layer != "embed_tokens":
        noise /= math.sqrt(math.prod(shape[1:]))
    return noise.to(torch.bfloat16).to(dtype)


def _llm_config(dims: dict[str, int]) -> dict:
    """What the reference reads beside the weights, in the names of transformers."""
    eighth = dims["head_dim"] // 16
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": dims["hidden"],
        "intermediate_size": dims["inner"],
        "num_hidden_layers": dims["layers"],
        "num_attention_heads": dims["heads"],
        "num_key_value_heads": dims["kv_heads"],
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [2 * eighth, 3 * eighth, 3 * eighth]},
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_config": {"spatial_merge_size": 2, "tokens_per_second": 2},
    }


def write_random(tensors: Shapes, dtype: torch.dtype, path: Path) -> None:
    tiny_checkpoint.save({name: _random(name, shape, dtype) for name, shape in tensors.items()}, path)


def write_holes(tensors: Shapes, dtype: torch.dtype, path: Path) -> None:
    """Zeros that take no place on the disk."""
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": STORED[dtype], "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


def write(
    folder: Path,
    size: str,
    dtype: torch.dtype,
    vision: VisionConfig = VISION,
    save: Callable[[Shapes, torch.dtype, Path], None] = write_random,
) -> Path:
    """Writes the layout into `folder` unless it is there; returns the transformer's file."""
    dims = DIMS[size]
    vision = replace(vision, out_hidden=dims["hidden"])
    model, encoder = folder / "Lance_3B", folder / "Qwen2.5-VL-ViT"
    if (model / "model.safetensors").exists():  # the last to be written
        return model / "model.safetensors"
    decoder = LanceTransformer(**dims, channels=48, device="meta", operations=torch.nn).state_dict()
    language = LanceLanguage(dims["hidden"], VOCABULARY, vision, None, device="meta", operations=torch.nn).state_dict()
    keys = {"embed_tokens.weight": "language_model.model.embed_tokens.weight"}
    keys["lm_head.weight"] = "language_model.lm_head.weight"
    shapes = {name: weight.shape for name, weight in decoder.items()}
    shapes |= {keys[name]: weight.shape for name, weight in language.items() if name in keys}
    seen = {name[len("visual.") :]: w.shape for name, w in language.items() if name.startswith("visual.")}

    model.mkdir(parents=True, exist_ok=True)
    encoder.mkdir(exist_ok=True)
    (model / "llm_config.json").write_text(json.dumps(_llm_config(dims), indent=2))
    settings = {
        **tiny_checkpoint.VIT_CONFIG,
        "depth": vision.layers,
        "hidden_size": vision.hidden,
        "intermediate_size": vision.inner,
        "num_heads": vision.heads,
        "out_hidden_size": vision.out_hidden,
        "fullatt_block_indexes": vision.full_attention,
    }
    (encoder / "config.json").write_text(json.dumps(settings, indent=2))
    tiny_checkpoint.save(tiny_checkpoint.vae_state_dict(), folder / "Wan2.2_VAE.safetensors")
    for path, named in ((encoder / "vit.safetensors", seen), (model / "model.safetensors", shapes)):
        save(named, dtype, path)
    return model / "model.safetensors"
