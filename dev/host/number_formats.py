"""The number formats that ComfyUI chooses on the cards people have, on a CPU: its decision functions are told what the
card can do, and choose by themselves.

Needs the plugin imported as `comfyui_lance`, and ComfyUI's settings made, before this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import comfy.model_management
import torch
from comfy.quant_ops import QUANT_ALGOS, get_layout_class
from safetensors import safe_open
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
MODEL_DEVICE, CLIP_DEVICE = torch.device("cpu", 0), torch.device("cpu")  # two names of one device


# ---- Cards: what ComfyUI's functions answer there --------------------------------------------------------------------


def yes(*args, **kwargs) -> bool:
    return True


def no(*args, **kwargs) -> bool:
    return False


def held_alone(device=None, model_params=0, prioritize_performance=True, manual_cast=False) -> bool:
    """bf16 on Turing: too slow to compute with; ComfyUI still holds models in it that are large beside the memory."""
    return manual_cast and model_params > 1e12


def but_fp8(device, dtype) -> bool:
    return dtype in (torch.float32, torch.float16, torch.bfloat16)


def where_the_model_is(device=None, *args, **kwargs) -> bool:
    return device == MODEL_DEVICE


AMPERE = {"should_use_bf16": yes, "should_use_fp16": yes, "supports_fp8_compute": no}
AMPERE |= {"supports_nvfp4_compute": no, "supports_mxfp8_compute": no}
HOPPER = AMPERE | {"supports_fp8_compute": yes}
TURING = AMPERE | {"should_use_bf16": held_alone}
APPLE = AMPERE | {"supports_cast": but_fp8}
APART = AMPERE | {
    "should_use_bf16": where_the_model_is,
    "get_torch_device": lambda: MODEL_DEVICE,
    "text_encoder_device": lambda: CLIP_DEVICE,
}


# ---- Files -----------------------------------------------------------------------------------------------------------


def is_projection(name: str) -> bool:
    return ".layers." in name and name.endswith(("_proj.weight", "_proj_moe_gen.weight"))


def native(format: str, **options) -> Callable[[str, torch.Tensor], Tensors]:
    """ComfyUI's own format, with its `comfy_quant` beside each weight; that notes the `options` of its quantisation."""

    def quantise(layer: str, weight: torch.Tensor) -> Tensors:
        layout = get_layout_class(QUANT_ALGOS[format]["comfy_tensor_layout"])
        data, params = layout.quantize(weight, **{"scale": "recalculate"} | options)
        tensors = layout.state_dict_tensors(data, params)
        described = torch.tensor(list(json.dumps({"format": format} | options).encode()), dtype=torch.uint8)
        return {f"{layer}.weight{suffix}": tensor for suffix, tensor in tensors.items()} | {
            f"{layer}.comfy_quant": described
        }

    return quantise


def quantise(weights: Tensors, how: Callable[[str, torch.Tensor], Tensors]) -> Tensors:
    """The projections as `how` makes them, all else as it is."""
    out: Tensors = {}
    for name, weight in weights.items():
        out |= how(name.removesuffix(".weight"), weight) if is_projection(name) else {name: weight}
    return out


# ---- Both ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """What the card says of itself, how the file's projections are stored, and the choice in Load Lance."""

    card: dict[str, Callable]
    stored: str = "bf16"
    weight_dtype: str = "default"

    def write(self, checkpoint: Path, out: Path) -> Path:
        """A checkpoint's file, stored in this format."""
        with safe_open(checkpoint, "pt") as file:
            weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
        if self.stored != "float32":
            weights = {
                name: weight if name.startswith("vae.") or not weight.is_floating_point() else weight.bfloat16()
                for name, weight in weights.items()
            }
        if self.stored in QUANT_ALGOS:
            weights = quantise(weights, native(self.stored))
        save_file(weights, out, metadata)
        return out

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """While models are loaded and run."""
        with ExitStack() as stack:
            for name, answer in self.card.items():
                stack.enter_context(mock.patch.object(comfy.model_management, name, answer))
            yield


FORMATS = {
    "bf16": Format(AMPERE),
    "fp8": Format(AMPERE, weight_dtype="fp8_e4m3fn"),
    "fp8 fast": Format(HOPPER, weight_dtype="fp8_e4m3fn_fast"),
    "scaled fp8 file": Format(AMPERE, "float8_e4m3fn"),
    "mxfp8 file": Format(AMPERE, "mxfp8"),
    "NVFP4 file": Format(AMPERE, "nvfp4"),
    "no bf16 (Turing)": Format(TURING),
    "no bf16, float32 file": Format(TURING, "float32"),
    "no fp8 (Apple)": Format(APPLE, "float8_e4m3fn", "fp8_e4m3fn"),
    "MODEL bf16, CLIP float32": Format(APART, "float32"),
}
