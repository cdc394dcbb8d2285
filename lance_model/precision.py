"""Which number formats the weights are held in, by what the file has, the user asks and the device can take.

What is computed with is ComfyUI's own choice (`unet_manual_cast`): weights in a format that the device only stores are
cast layer by layer.
"""

from __future__ import annotations

import logging

import comfy.model_management
import torch

from . import quantised
from .checkpoint import Part
from .config import LAYER
from .diffusion import LanceConfig

FP8 = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e4m3fn_fast": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
WEIGHT_DTYPES = ("default", *FP8)
SUPPORTED = LanceConfig.supported_inference_dtypes  # to compute with
STORED = {  # as safetensors spells them
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.uint8,  # scales, whose bytes ComfyUI takes as they are
    "U8": torch.uint8,
    "I8": torch.int8,
}


def holds_fp8(device: torch.device) -> bool:
    return comfy.model_management.supports_cast(device, torch.float8_e4m3fn)


def of_model(part: Part, device: torch.device) -> torch.dtype:
    """The dtype of the experts' plain weights."""
    dtype = STORED[part.dtypes["vae2llm.bias"]]
    if dtype == torch.float32:
        # A card that cannot compute with bf16 may still hold it, which loses nothing that Lance was trained with. For
        # models too large to be held in float32 ComfyUI thinks of that itself; -1 is larger than any.
        dtype = comfy.model_management.unet_dtype(device, -1, SUPPORTED, dtype)
    return _held(dtype if dtype in SUPPORTED else torch.bfloat16, part, device)


def of_projections(
    part: Part, layers: quantised.Settings, weight_dtype: str, plain: torch.dtype, device: torch.device
) -> torch.dtype | None:
    """The dtype of the layers' projections, which hold nearly all bytes; None if some are quantised and stay so.

    `plain` is the dtype of all other weights. A wish that cannot be met is said in the log.
    """
    quantised_by_comfy = any(settings["format"] != quantised.INT4 for settings in layers.values())
    if quantised_by_comfy and holds_fp8(device):
        if weight_dtype in FP8:
            logging.warning(f"{part.path.name} is quantised already: weight_dtype {weight_dtype} changes nothing.")
        return None
    stored = STORED.get(part.dtypes.get(LAYER + "mlp.gate_proj.weight"))
    dtype = FP8.get(weight_dtype, stored if stored in FP8.values() else plain)
    if quantised_by_comfy:
        return _instead(plain, "quantised", part, device)
    if dtype in FP8.values() and not holds_fp8(device):
        return _instead(plain, "fp8", part, device)
    return dtype


def of_language(part: Part, device: torch.device) -> torch.dtype:
    """The dtype of embeddings, vision encoder and head."""
    dtype = STORED[part.dtypes["embed_tokens.weight"]]
    if dtype != torch.float32 or comfy.model_management.should_use_bf16(
        device, prioritize_performance=False, manual_cast=True
    ):
        dtype = torch.bfloat16
    return _held(dtype, part, device)


def _held(dtype: torch.dtype, part: Part, device: torch.device) -> torch.dtype:
    if comfy.model_management.supports_cast(device, dtype):
        return dtype
    return _instead(torch.float32, _name(dtype), part, device)


def _instead(dtype: torch.dtype, wanted: str, part: Part, device: torch.device) -> torch.dtype:
    logging.warning(
        f"{device} cannot hold {wanted} weights: {part.path.name} is held in {_name(dtype)}, which takes more memory."
    )
    return dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
