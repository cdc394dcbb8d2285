"""The tiny checkpoint in every number format that a file may have."""

import json
from pathlib import Path

import torch
from comfy.quant_ops import QUANT_ALGOS
from comfyui_lance.dev.host.number_formats import native, quantise
from comfyui_lance.lance_model import language
from safetensors.torch import load_file

from .checkpoints import MODEL, VAE, VISION, save
from .sampling import Probe, sample, schedule

TENSORS = dict[str, torch.Tensor]


def int4(layer: str, weight: torch.Tensor, group: int = 32) -> TENSORS:
    groups = weight.float().unflatten(1, (-1, group))
    low, high = groups.amin(-1), groups.amax(-1)
    scales = (high - low).clamp(min=1e-8) / 15
    zeros = (-low / scales).round().clamp(0, 15)
    codes = (groups / scales[..., None] + zeros[..., None]).round().clamp(0, 15).to(torch.uint8).flatten(1)
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    return {
        f"{layer}.qweight": packed,
        f"{layer}.scales": scales.to(torch.bfloat16),
        f"{layer}.zeros": zeros.to(torch.uint8),
    }


def fp4(layer: str, weight: torch.Tensor) -> TENSORS:
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    blocks = weight.float().unflatten(1, (-1, 16))
    scales = (blocks.abs().amax(-1).clamp(min=1e-8) / 6).to(torch.bfloat16)
    scaled = blocks / scales.float()[..., None]
    codes = (scaled.abs()[..., None] - values).abs().argmin(-1).to(torch.uint8)
    codes = (codes | (scaled < 0).to(torch.uint8) << 3).flatten(1)
    return {
        f"{layer}.qweight": codes[:, 0::2] | codes[:, 1::2] << 4,
        f"{layer}.scales_bf16": scales,
        f"{layer}.scales_fp8": scales.to(torch.float8_e4m3fn).view(torch.uint8),
    }


def old_fp8(layer: str, weight: torch.Tensor) -> TENSORS:
    scale = weight.float().abs().amax() / 448
    return {f"{layer}.weight": (weight.float() / scale).to(torch.float8_e4m3fn), f"{layer}.scale_weight": scale}


def in_bf16(tiny: Path) -> TENSORS:
    """The tiny transformer."""
    return {key: value.to(torch.bfloat16) for key, value in load_file(tiny / MODEL).items()}


def beside(tiny: Path) -> dict:
    """The other two files."""
    return {"vision": tiny / VISION, "vae": tiny / VAE}


def in_metadata(weights: TENSORS, path: Path) -> Path:
    """The format of each layer in the header instead of beside the weight, under a checkpoint's prefix."""
    weights = {f"model.diffusion_model.{name}": value for name, value in quantise(weights, native("nvfp4")).items()}
    notes = [name.removesuffix(".comfy_quant") for name in weights if name.endswith(".comfy_quant")]
    listed = {"layers": {name: {"format": "nvfp4"} for name in notes}}
    weights = {name: value for name, value in weights.items() if not name.endswith(".comfy_quant")}
    return save(weights, path, {"_quantization_metadata": json.dumps(listed)})


ROTATED = native("int8_tensorwise", per_channel=True, convrot=True, convrot_groupsize=16)


def flat_scales(weights: TENSORS, path: Path) -> Path:
    """Scales of rows without the second dimension, as some files have them."""
    weights = quantise(weights, native("int8_tensorwise", per_channel=True))
    return save({name: w[:, 0] if name.endswith(".weight_scale") else w for name, w in weights.items()}, path)


def velocity(loaded) -> torch.Tensor:
    model, clip, _ = loaded
    noise = torch.randn(1, 48, 1, 4, 6, generator=torch.Generator().manual_seed(1))
    probe = Probe()
    pair = language.encode_pair(clip, "A red fox.")
    out = sample(probe.attach(model), *pair, noise, schedule(2, 3.5))
    assert torch.isfinite(out).all()
    return probe.velocities[0]


# What makes the file, the format in memory (None: plain), the least and the most distance of the velocity from bf16.
FORMATS = {
    "fp8 e4m3": (lambda w, path: save(quantise(w, native("float8_e4m3fn")), path), "float8_e4m3fn", 0.08),
    "fp8 e5m2": (lambda w, path: save(quantise(w, native("float8_e5m2")), path), "float8_e5m2", 0.16),
    "mxfp8": (lambda w, path: save(quantise(w, native("mxfp8")), path), "mxfp8", 0.08),
    "nvfp4": (lambda w, path: save(quantise(w, native("nvfp4")), path), "nvfp4", 0.4),
    "nvfp4 in the metadata": (in_metadata, "nvfp4", 0.4),
    "older scaled fp8": (
        lambda w, path: save(quantise(w, old_fp8) | {"scaled_fp8": torch.zeros(2)}, path),
        "float8_e4m3fn",
        0.08,
    ),
    "blocks of FP4": (lambda w, path: save(quantise(w, fp4), path), "nvfp4", 0.4),
    "int8": (lambda w, path: save(quantise(w, native("int8_tensorwise")), path), "int8_tensorwise", 0.08),
    "int8 by rows, rotated": (lambda w, path: save(quantise(w, ROTATED), path), "int8_tensorwise", 0.03),
    "int8 by rows, flat": (flat_scales, "int8_tensorwise", 0.03),
    "groups of INT4": (lambda w, path: save(quantise(w, int4), path), None, 0.4),
}
if "asym_w4a8_int8" in QUANT_ALGOS:  # since ComfyUI 0.33
    FORMATS["w4a8"] = (
        lambda w, path: save(quantise(w, native("asym_w4a8_int8", convrot_groupsize=16)), path),
        "asym_w4a8_int8",
        0.4,
    )
