"""Load Lance: files → MODEL, CLIP, VAE."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..lance_model import loading, nano

FOLDER = "lance"
AUTO = "auto"
NANO = "demonstration (nano)"  # comes with the plugin
MODEL_FOLDERS = (FOLDER, "diffusion_models", "checkpoints")
VISION_FOLDERS = (FOLDER, "text_encoders")
VAE_FOLDERS = (FOLDER, "vae")
PART_FOLDERS = dict.fromkeys((*VISION_FOLDERS, *VAE_FOLDERS))
PARTS = {Path(name).name for name in (*loading.VISION_FILES, *loading.VAE_FILES)}  # files that are no models


def _named(name: str, word: str) -> bool:
    return word in Path(name).name.lower()


def _files(folders: tuple[str, ...], suffixes: tuple[str, ...] = (".safetensors", ".sft")) -> dict[str, str]:
    """Name → folder, for the weight files of ComfyUI's model folders. The first folder wins.

    Names have forward slashes everywhere, so that a workflow means the same file on every system.
    """
    found: dict[str, str] = {}
    for folder in folders:
        for name in folder_paths.get_filename_list(folder):
            if name.endswith(suffixes):
                found.setdefault(name.replace("\\", "/"), folder)
    return found


def model_files() -> dict[str, str]:
    files = _files(MODEL_FOLDERS, (".safetensors", ".sft", ".gguf"))  # GGUF gets a sentence in place of silence
    return {name: f for name, f in files.items() if Path(name).name not in PARTS}


def vision_files() -> dict[str, str]:
    return {name: f for name, f in _files(VISION_FOLDERS).items() if f != FOLDER or _named(name, "vit")}


def vae_files() -> dict[str, str]:
    files = _files(VAE_FOLDERS, (".safetensors", ".sft", ".pth"))
    return {name: f for name, f in files.items() if f != FOLDER or _named(name, "vae")}


def _path(name: str, files: dict[str, str]) -> str | None:
    """None for auto. A file that is gone keeps its name, which the loader then does not find."""
    return None if name == AUTO else folder_paths.get_full_path(files.get(name, FOLDER), name) or name


class LoadLance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LanceLoader",
            display_name="Load Lance",
            category="Lance",
            description="Loads a Lance checkpoint as a native MODEL, CLIP and VAE. Put the official repository into "
            "models/lance as downloaded, or its parts into diffusion_models, text_encoders and vae.",
            search_aliases=["lance", "bytedance", "unified model", "checkpoint"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=[*model_files(), NANO],
                    tooltip="Lance_3B for pictures, Lance_3B_Video for clips and pictures. The demonstration model "
                    "comes with these nodes and knows coloured shapes at 64x64 alone.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(loading.WEIGHT_DTYPES),
                    advanced=True,
                    tooltip="fp8 halves the memory of the experts at a small loss of precision.",
                ),
                io.Combo.Input(
                    "vision",
                    options=[AUTO, *vision_files()],
                    advanced=True,
                    tooltip="Qwen2.5-VL's vision encoder. auto: Qwen2.5-VL-ViT beside the model's folder, else the "
                    "one in its file.",
                ),
                io.Combo.Input(
                    "vae",
                    options=[AUTO, *vae_files()],
                    advanced=True,
                    tooltip="Wan 2.2's VAE. auto: the one in the model's file, else Wan2.2_VAE beside the model's "
                    "folder or in models/vae.",
                ),
            ],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        # ComfyUI checks the other choices itself, but would only list what there is.
        files = model_files()
        if model != NANO and model not in files:
            there = f"There is: {', '.join([*list(files)[:5], NANO])}"
            return (
                f"The model {model!r} is not in models/lance, models/diffusion_models or models/checkpoints. "
                f"{there}. Download the Lance repository into models/lance and press R to refresh."
            )
        return True

    @classmethod
    def execute(cls, model: str, weight_dtype: str, vision: str, vae: str) -> io.NodeOutput:
        vision, vae = _path(vision, vision_files()), _path(vae, vae_files())
        if model == NANO:
            path, folders = nano.checkpoint(Path(folder_paths.get_temp_directory())), []
        else:
            path = _path(model, model_files())
            folders = [Path(folder) for kind in PART_FOLDERS for folder in folder_paths.get_folder_paths(kind)]
        return io.NodeOutput(*loading.load(path, vision, vae, weight_dtype, folders))


NODES = [LoadLance]
