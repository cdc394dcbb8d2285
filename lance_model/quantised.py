"""Quantised projections: which a file has, in which format, and what ComfyUI's mixed precision operations are given.

To those operations a quantised layer is its stored `weight`, scales beside it and `comfy_quant`, the bytes of a JSON
object that names the format and, where columns are rotated or scaled in groups, how many. A file says so in one of
these ways:

- `comfy_quant` beside each weight, or one list of layers in the metadata (`_quantization_metadata`): ComfyUI's own
- a tensor `scaled_fp8` and a `scale_weight` beside each fp8 weight: ComfyUI's older one
- `qweight`, `scales_bf16` [out, in / 16]: FP4 (E2M1) codes with a bf16 scale a block. Becomes ComfyUI's nvfp4, whose
  scales are fp8 numbers below one float32 scale a tensor, so they are rounded once more
- `qweight`, `scales`, `zeros` [out, in / group]: integers from 0 to 15 of which the group's zero is subtracted before
  they are scaled. ComfyUI has no such format, so these become plain weights while they are loaded

Both kinds of `qweight` are [out, in / 2] bytes, the even column in the low four bits.
"""

from __future__ import annotations

import json
import math
import re

import comfy.ops
import comfy.utils
import torch
from comfy.quant_ops import QUANT_ALGOS, ck
from safetensors import safe_open

from .checkpoint import CheckpointError, Part
from .config import Shape

FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
FP4, INT4 = "blocks of FP4", "groups of INT4"  # not ComfyUI's formats
INT8, W4A4, W4A8 = "int8_tensorwise", "convrot_w4a4", "asym_w4a8_int8"  # ComfyUI multiplies them as integers
FORMATS = {"float8_e4m3fn", "float8_e5m2", "mxfp8", "nvfp4", INT8, W4A4, W4A8}  # older hosts know fewer
PACKED = {"nvfp4", W4A4, W4A8}  # two columns a byte
ROTATIONS = (4, 16, 64, 256, 1024)  # columns that ConvRot turns together
BYTES = ("U8", "F8_E4M3", "F8_E5M2", "F8_E8M0")  # an fp8 tensor may be stored as plain bytes
FLOATS = ("F32", "BF16", "F16")
STORED_DTYPES = (*FLOATS, "F8_E4M3", "F8_E5M2")  # of plain weights, as safetensors spells them
FP8_MAX = 448.0

Settings = dict[str, dict]  # a layer's name → what its `comfy_quant` says
Expected = dict[str, tuple[Shape, tuple[str, ...]]]  # a tensor's name → its shape and the dtypes that it may have


def layers(part: Part) -> tuple[Part, Settings]:
    """The part, with the tensors of the older ways under their present names, and its quantised layers: none if plain.

    Raises CheckpointError for a format that cannot be loaded.
    """
    found = _in_metadata(part) | _in_tensors(part)
    if "scaled_fp8" in part.keys:
        part, scaled = _scaled_fp8(part)
        found |= scaled
    for layer, settings in found.items():
        format = str(settings.get("format"))
        if format not in FORMATS:
            raise CheckpointError(
                f"{part.path.name} stores {layer} in a format that Lance cannot be loaded from ({format}). "
                "Take a bf16, fp8, int8 or NVFP4 file."
            )
        if format not in QUANT_ALGOS:
            raise CheckpointError(
                f"{part.path.name} stores {layer} as {format}, which this ComfyUI does not know yet. "
                "Update ComfyUI, or take a bf16 or fp8 file."
            )
    for name in part.keys:
        layer, _, kind = name.rpartition(".")
        if kind == "qweight":
            found[layer] = {"format": FP4 if layer + ".scales_bf16" in part.keys else INT4}
    return part, found


def _in_metadata(part: Part) -> Settings:
    listed = _json(part, part.header.metadata.get("_quantization_metadata", "{}")).get("layers", {})
    names = {key.removesuffix(".weight"): name.removesuffix(".weight") for name, key in part.keys.items()}
    found = {}
    for layer, settings in listed.items() if isinstance(listed, dict) else ():
        # With the file's prefix or without.
        name = next((name for key, name in names.items() if key == layer or key.endswith("." + layer)), None)
        if name is not None and isinstance(settings, dict):
            found[name] = settings
    return found


def _in_tensors(part: Part) -> Settings:
    dtypes = part.header.dtypes
    marks = {name: key for name, key in part.keys.items() if name.endswith(".comfy_quant") and dtypes[key] == "U8"}
    if not marks:
        return {}
    with safe_open(part.path, "np") as file:
        return {
            name.removesuffix(".comfy_quant"): _json(part, file.get_tensor(key).tobytes())
            for name, key in marks.items()
        }


def _json(part: Part, text: str | bytes) -> dict:
    try:
        settings = json.loads(text)
        settings.keys()
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointError(
            f"The quantisation of {part.path.name} is described by invalid JSON. Download it again."
        ) from None
    return settings


def _scaled_fp8(part: Part) -> tuple[Part, Settings]:
    """By ComfyUI's own conversion, of stand-ins for the tensors: the weights are read when all has been checked.

    It leaves out scales of inputs that are 1, and takes every layer for e4m3.
    """
    stand_ins = {name: torch.empty(shape, device="meta") for name, shape in part.shapes.items()}
    with safe_open(part.path, "pt") as file:
        for name, key in part.keys.items():
            if name.endswith(".scale_input"):
                stand_ins[name] = file.get_tensor(key) if math.prod(part.shapes[name]) == 1 else torch.zeros(())
    names = {id(tensor): name for name, tensor in stand_ins.items()}
    converted, _ = comfy.utils.convert_old_quants(dict(stand_ins))
    keys, found = {}, {}
    for name, tensor in converted.items():
        if id(tensor) in names:
            keys[name] = part.keys[names[id(tensor)]]
        else:
            layer, settings = name.removesuffix(".comfy_quant"), _json(part, bytes(tensor.tolist()))
            found[layer] = settings | {"format": FP8.get(part.dtypes.get(layer + ".weight"))}
    return Part(part.header, keys), found


def plain_shapes(part: Part) -> dict[str, Shape]:
    """The part's shapes, with packed weights under their plain names. Their first dimensions are true."""
    return {re.sub(r"\.qweight$", ".weight", name): shape for name, shape in part.shapes.items()}


def stored(part: Part, settings: Settings, plain: dict[str, Shape]) -> Expected:
    """What a file with these quantised layers must hold, if a plain one holds `plain`."""
    shapes = part.shapes
    expected = {name: (shape, STORED_DTYPES) for name, shape in plain.items()}
    for layer, described in settings.items():
        if len(plain.get(layer + ".weight", ())) != 2:
            continue  # no linear layer of Lance: its scales then are tensors that Lance has not
        rows, columns = expected.pop(layer + ".weight")[0]
        if not _fits(described, columns):
            raise CheckpointError(
                f"{part.path.name} stores {layer} with settings that do not fit its {columns} columns: "
                f"{json.dumps(described)}. Take another file."
            )
        beside = {name.removeprefix(layer + "."): shapes[name] for name in shapes if name.startswith(layer + ".")}
        for name, (shape, dtypes) in _tensors(described, rows, columns, beside).items():
            expected[f"{layer}.{name}"] = (1,) if shape == () and beside.get(name) == (1,) else shape, dtypes
    return expected


def _setting(described: dict, name: str, default: object) -> object:
    """As ComfyUI looks for it."""
    inner = described.get("params")
    return described.get(name, inner.get(name, default) if isinstance(inner, dict) else default)


def _fits(described: dict, columns: int) -> bool:
    """Whether ComfyUI can compute with integers that are rotated and grouped so."""
    format = described["format"]
    if format in (W4A4, W4A8) or format == INT8 and _setting(described, "convrot", False):
        rotation = _setting(described, "convrot_groupsize", 256)
        if rotation not in ROTATIONS or columns % rotation:
            return False
    if format == W4A4:
        return columns % 64 == 0 and _setting(described, "linear_dtype", "int4") in ("int4", "int8")
    if format == W4A8:
        group = _setting(described, "group_size", 16)
        whole = isinstance(group, int) and group > 0 and group % 16 == columns % group == 0
        return columns % 16 == 0 and (whole or group in (4, 8))
    return True


def _tensors(described: dict, rows: int, columns: int, beside: dict[str, Shape]) -> Expected:
    """The tensors of one layer [rows, columns], by their names in it; `beside` are those that the file has."""
    format = described["format"]
    if format == INT4:
        groups = (0, *beside.get("scales", ()))[-1]
        table = (rows, groups if groups and columns % groups == 0 else columns // 128)
        return {"qweight": ((rows, columns // 2), ("U8",)), "scales": (table, FLOATS), "zeros": (table, ("U8",))}
    if format == FP4:
        table = (rows, columns // 16)
        tensors = {"qweight": ((rows, columns // 2), ("U8",)), "scales_bf16": (table, FLOATS)}
        optional = {"scales_fp8": (table, BYTES)}  # the same scales, less precise
    else:
        width = columns // 2 if format in PACKED else columns
        tensors = {"weight": ((rows, width), ("I8",) if format in (INT8, W4A4, W4A8) else BYTES)}
        tensors |= _scales(described, rows, columns, beside)
        optional = {"input_scale": ((), FLOATS), "pre_quant_scale": ((columns,), FLOATS)}
        optional = {name: what for name, what in optional.items() if name in QUANT_ALGOS[format]["parameters"]}
        optional["comfy_quant"] = beside.get("comfy_quant"), ("U8",)
    return tensors | {name: what for name, what in optional.items() if name in beside}


def _scales(described: dict, rows: int, columns: int, beside: dict[str, Shape]) -> Expected:
    """Of the whole weight, of its rows, or of groups of columns."""
    format = described["format"]
    if format == INT8:
        found = beside.get("weight_scale")
        return {"weight_scale": (found if found in ((), (1,), (rows,)) else (rows, 1), FLOATS)}
    if format == W4A4:
        return {"weight_scale": ((rows,), FLOATS)}
    if format == W4A8:
        groups = columns // _setting(described, "group_size", 16)
        scales = {"weight_s_rel": ((rows, groups), (*BYTES, "F32")), "weight_s_channel": ((rows,), FLOATS)}
        return scales | ({"weight_codebook": ((16,), FLOATS)} if "weight_codebook" in beside else {})
    block = QUANT_ALGOS[format].get("group_size")
    # Scales of blocks are stored in tiles of 128 × 4.
    tiled = (-(-rows // 128) * 128, -(-columns // (4 * block)) * 4) if block else ()
    scales = {"weight_scale": (tiled, BYTES if block else FLOATS)}
    return scales | ({"weight_scale_2": ((), FLOATS)} if format == "nvfp4" else {})


def unpack(weights: dict[str, torch.Tensor], settings: Settings, dtype: torch.dtype, keep: bool = True) -> Settings:
    """Makes the weights such as ComfyUI's operations take, in place; `dtype` is that of plain weights.

    Returns the settings of those layers that stay quantised; none do without `keep`, for devices that cannot hold fp8.
    """
    kept = {}
    for layer, described in settings.items():
        if described["format"] == INT4:
            packed, scales, zeros = (weights.pop(f"{layer}.{name}") for name in ("qweight", "scales", "zeros"))
            codes = ck.float_utils.unpack_uint4(packed, hi_first=False)
            centred = codes.unflatten(1, (scales.shape[1], -1)).float() - zeros[..., None].float()
            weights[layer + ".weight"] = (centred * scales[..., None].float()).flatten(1).to(dtype)
            continue
        if described["format"] == FP4:
            weights.pop(layer + ".scales_fp8", None)
            scales = weights.pop(layer + ".scales_bf16").float()
            largest = (scales.amax() / FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
            blocks = (scales / largest).to(torch.float8_e4m3fn)
            weights[layer + ".weight"] = ck.float_utils.swap_nibbles(weights.pop(layer + ".qweight"))
            weights[layer + ".weight_scale"] = ck.float_utils.to_blocked(blocks, flatten=False)
            weights[layer + ".weight_scale_2"] = largest
            # Activations that nobody calibrated keep their precision.
            described = {"format": "nvfp4", "full_precision_matrix_mult": True}
        if described["format"] == INT8 and weights[layer + ".weight_scale"].ndim == 1:
            # Scales of rows, which ComfyUI would decode as scales of columns.
            weights[layer + ".weight_scale"] = weights[layer + ".weight_scale"][:, None]
        weights[layer + ".comfy_quant"] = torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)
        if keep:
            kept[layer] = described
        else:
            weights[layer + ".weight"] = _plain(weights, layer, described["format"]).to(dtype)
    return kept


def _plain(weights: dict[str, torch.Tensor], layer: str, format: str) -> torch.Tensor:
    """What the tensors of a quantised layer stand for, by ComfyUI's own operations; they are taken out of `weights`."""
    names = [name for name in weights if name.startswith(layer + ".") and not name.endswith(".bias")]
    tensors = {name.removeprefix(layer + "."): weights.pop(name) for name in names}
    rows, columns = tensors["weight"].shape
    linear = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32).Linear(
        columns * 2 if format in PACKED else columns, rows, bias=False, device="cpu"
    )
    linear.load_state_dict(tensors)
    return linear.weight.dequantize() * getattr(linear, "pre_quant_scale", 1)
