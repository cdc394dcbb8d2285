"""LoRAs as trainers write them → the names that ComfyUI's loaders know.

PEFT wraps a layer's name in prefixes of its own, may add the adapter's name, and keeps the strength in a file of its
own, adapter_config.json: alpha / rank, or alpha / √rank with `use_rslora`. ComfyUI divides by the rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from .checkpoint import CheckpointError, place

CONFIG = "adapter_config.json"
PREFIXES = {"model": "diffusion_model.", "language": "text_encoders.", "vision": "text_encoders."}
KEY = re.compile(r"(?P<layer>.+?)\.(?P<side>lora_A|lora_B|lora_down|lora_up)(\.(?P<adapter>\w+))?\.weight")
FIRST_SIDES = ("lora_A", "lora_down")  # [rank, in]
WRAPPINGS = re.compile(r"^((base_model\.model|diffusion_model|transformer|module)\.)+")


class Names(NamedTuple):
    """`keys`: new name → key in the file; `alphas`: new name → number, which the file lacks."""

    keys: dict[str, str]
    alphas: dict[str, float]


def is_lora(keys: Iterable[str]) -> bool:
    return any(KEY.fullmatch(key) for key in keys)


def read_config(file: Path) -> dict:
    """PEFT's settings beside a LoRA's file; empty if there are none."""
    beside = file.with_name(CONFIG)
    try:
        config = json.loads(beside.read_bytes()) if beside.is_file() else {}
        if not isinstance(config, dict):
            raise ValueError
        return config
    except ValueError:
        raise _not_pefts(beside) from None


def rename(
    file: Path, shapes: Mapping[str, tuple[int, ...]], known: Callable[[str], bool] = lambda key: False
) -> Names:
    """Names for the tensors of a LoRA's `file`, by their shapes. Keys that are `known` keep theirs.

    CheckpointError for what is not a LoRA of Lance's.
    """
    config, names = read_config(file), Names({}, {})
    for key, shape in shapes.items():
        layer, _, kind = key.rpartition(".")
        if known(key):
            names.keys[key] = key
        elif kind == "alpha":
            names.keys[f"{_renamed(file, layer)}.alpha"] = key
        elif found := KEY.fullmatch(key):
            name = _renamed(file, found["layer"])
            names.keys[f"{name}.{found['side']}.weight"] = key
            if found["side"] in FIRST_SIDES and "lora_alpha" in config:
                try:
                    names.alphas[f"{name}.alpha"] = _alpha(config, found["layer"], rank=shape[0])
                except (ValueError, AttributeError, TypeError, re.error):
                    raise _not_pefts(file.with_name(CONFIG)) from None
        else:
            raise CheckpointError(f"{file.name} has {key}, which ComfyUI's LoRA loaders cannot apply to Lance.")
    return names


def _alpha(config: dict, layer: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    alpha = next((patterns[p] for p in patterns if re.fullmatch(rf"(.*\.)?({p})", layer)), None)
    alpha = float(config["lora_alpha"] if alpha is None else alpha)
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _renamed(file: Path, layer: str) -> str:
    """ComfyUI's name of a layer: out of what wraps it, and whole where a trainer saw only the language model."""
    bare = WRAPPINGS.sub("", layer)
    bare = re.sub(r"^(?=(model\.)?layers\.)", "language_model.", bare)
    bare = bare.replace("language_model.layers.", "language_model.model.layers.", 1)
    found = place(bare + ".")
    if found is None or found[0] not in PREFIXES:
        raise CheckpointError(f"{file.name} is not for Lance: it changes {layer}, which Lance has not.")
    return PREFIXES[found[0]] + found[1].removesuffix(".")


def _not_pefts(config: Path) -> CheckpointError:
    return CheckpointError(f"{config} is not PEFT's. Download it again, or move it away.")
