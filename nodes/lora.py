"""LoRAs in the names that trainers give: a file → MODEL and CLIP that it has changed."""

from __future__ import annotations

from pathlib import Path

import comfy.lora
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..lance_model import lora, partners
from ..lance_model.diffusion import Lance
from ..lance_model.language import LanceLanguage

FOLDER = "loras"


class LoadLanceLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        strength = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}
        return io.Schema(
            node_id="LanceLoraLoader",
            display_name="Load Lance LoRA",
            category="Lance",
            description="Applies a LoRA of Lance's, on either expert and on CLIP. Takes any naming: ComfyUI's own, "
            "or PEFT's, with the strength in the adapter_config.json beside the file.",
            search_aliases=["lora", "peft", "adapter", "style"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Load Lance, or of another LoRA loader."),
                io.Combo.Input(
                    "lora_name", options=folder_paths.get_filename_list(FOLDER), tooltip="A file in models/loras."
                ),
                io.Float.Input("strength_model", **strength, tooltip="How much it changes MODEL; may be negative."),
                io.Float.Input("strength_clip", **strength, tooltip="How much it changes CLIP, where it does."),
                io.Clip.Input("clip", optional=True, tooltip="The CLIP of Load Lance; few LoRAs change it."),
            ],
            outputs=[io.Model.Output(), io.Clip.Output()],
        )

    @classmethod
    def execute(cls, model, lora_name: str, strength_model: float, strength_clip: float, clip=None) -> io.NodeOutput:
        partners.check(model, "model", Lance, "MODEL")
        if clip is not None:
            partners.check(clip, "cond_stage_model", LanceLanguage, "CLIP")
        path = Path(folder_paths.get_full_path_or_raise(FOLDER, lora_name))
        return io.NodeOutput(*_applied(model, clip, path, strength_model, strength_clip))


def _applied(model, clip, path: Path, strength_model: float, strength_clip: float) -> tuple:
    weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    to_model = comfy.lora.model_lora_keys_unet(model.model, {})
    to_clip = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}) if clip is not None else {}

    def known(key: str) -> bool:
        return any(start in to_model or start in to_clip for start in _starts(key))

    names = lora.rename(path, {key: tuple(weight.shape) for key, weight in weights.items()}, known)
    renamed = {name: weights[key] for name, key in names.keys.items()}
    renamed |= {name: torch.tensor(alpha) for name, alpha in names.alphas.items()}
    if clip is None and strength_clip and any(name.startswith(lora.PREFIXES["language"]) for name in renamed):
        raise ValueError(f"{path.name} also changes CLIP. Connect the CLIP of Load Lance, or set strength_clip to 0.")
    return comfy.sd.load_lora_for_models(model, clip, renamed, strength_model, strength_clip)


def _starts(key: str) -> list[str]:
    """What may be the layer's name in a key, shortest first."""
    parts = key.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


NODES = [LoadLanceLora]
