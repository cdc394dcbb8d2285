"""Load Lance: files → MODEL, CLIP, VAE."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..lance_model import download, found, loading, nano
from ..lance_model.checkpoint import CheckpointError, find_beside
from .progress import shown

FOLDER = "lance"
AUTO = "auto"
AUTOMATIC = {"automatic (pictures)": found.PICTURES, "automatic (clips)": found.CLIPS}
DOWNLOADS = {f"download {model} ({size} GB in all)": model for model, size in download.GIGABYTES.items()}
NANO = "demonstration (nano)"  # comes with the plugin
MODEL_FOLDERS = (FOLDER, "diffusion_models", "checkpoints")
VISION_FOLDERS = (FOLDER, "text_encoders")
VAE_FOLDERS = (FOLDER, "vae")
PART_FOLDERS = dict.fromkeys((*VISION_FOLDERS, *VAE_FOLDERS))
PARTS = {Path(name).name for name in (*loading.VISION_FILES, *loading.VAE_FILES)}  # files that are no models


def _named(name: str, word: str) -> bool:
    return word in Path(name).name.lower()


def _listed(folder: str) -> list[str]:
    try:
        return folder_paths.get_filename_list(folder)
    except FileNotFoundError:  # ComfyUI does not expect that a folder which it has listed may go
        folder_paths.filename_list_cache.pop(folder, None)
        return folder_paths.get_filename_list(folder)


def _files(folders: tuple[str, ...], suffixes: tuple[str, ...] = (".safetensors", ".sft")) -> dict[str, str]:
    """Name → folder, for the weight files of ComfyUI's model folders. The first folder wins.

    Names have forward slashes everywhere, so that a workflow means the same file on every system.
    """
    files: dict[str, str] = {}
    for folder in folders:
        for name in _listed(folder):
            if name.endswith(suffixes):
                files.setdefault(name.replace("\\", "/"), folder)
    return files


def model_files() -> dict[str, str]:
    files = _files(MODEL_FOLDERS, (".safetensors", ".sft", ".gguf"))  # GGUF gets a sentence in place of silence
    return {name: f for name, f in files.items() if Path(name).name not in PARTS}


def vision_files() -> dict[str, str]:
    return {name: f for name, f in _files(VISION_FOLDERS).items() if f != FOLDER or _named(name, "vit")}


def vae_files() -> dict[str, str]:
    files = _files(VAE_FOLDERS, (".safetensors", ".sft", ".pth"))
    return {name: f for name, f in files.items() if f != FOLDER or _named(name, "vae")}


def models() -> list[str]:
    """The choices for the model. Downloads stay when they have come, as workflows are saved with them."""
    return [*AUTOMATIC, *model_files(), *DOWNLOADS, NANO]


def automatic(model: str) -> str | None:
    """The name of the Lance checkpoint on disk for what the official `model` is for; None where there is none."""
    files = model_files()
    likely = {name: Path(_path(name, files)) for name, f in files.items() if f == FOLDER or "lance" in name.lower()}
    return found.choose(likely, model)


def _part_folders() -> list[Path]:
    return [Path(folder) for kind in PART_FOLDERS for folder in folder_paths.get_folder_paths(kind)]


def _say(text: str, show: Callable[[str], None] | None) -> None:
    logging.info("Load Lance: %s", text)
    if show is not None:
        show(text)


def _downloaded(model: str, show: Callable[[str], None] | None) -> Path:
    """The path of the official `model`, which comes from the hub unless it is there."""
    files = model_files()
    there = found.official(files, model)
    if there is not None:
        _say(there, show)
        return Path(_path(there, files))
    bar, told = comfy.utils.ProgressBar(1), ""

    def progress(done: int, total: int) -> None:
        nonlocal told
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)
        text = f"Downloading {model}: {done / 1e9:.1f} of {total / 1e9:.1f} GB"
        if show is not None and text != told:
            told = text
            show(text)

    lance, vae = (Path(folder_paths.get_folder_paths(kind)[0]) for kind in (FOLDER, "vae"))
    path = download.download(model, lance, vae, _part_folders(), progress)
    _say(path.relative_to(lance).as_posix(), show)
    return path


def _taken(name: str | None, model: str) -> str:
    """What the node says of its automatic choice."""
    if name is None:
        return "Demonstration model, as there is no Lance: choose a download to get it"
    if found.is_for_clips(name) == (model == found.CLIPS):
        return name
    return f"{name}, as there is no {model}"


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
            description="Loads a Lance checkpoint as a native MODEL, CLIP and VAE: one that you have, or one that it "
            "downloads if you choose so. Without any there is a demonstration model.",
            search_aliases=["lance", "bytedance", "unified model", "checkpoint"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=models(),
                    tooltip="automatic: your own Lance for pictures or for clips, else the demonstration model, which "
                    "comes with these nodes and knows coloured shapes at 64x64 alone. "
                    "download: fetches what is missing from Hugging Face into models/lance and models/vae, once.",
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
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        # ComfyUI checks the other choices itself, but would only list what there is.
        files = model_files()
        if model not in {NANO, *AUTOMATIC, *DOWNLOADS, *files}:
            there = f"There is: {', '.join([*list(files)[:5], NANO])}"
            return (
                f"The model {model!r} is not in models/lance, models/diffusion_models or models/checkpoints. "
                f"{there}. Choose {next(iter(AUTOMATIC))!r} or a download, or put it there and press R to refresh."
            )
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str, vision: str, **inputs) -> tuple[str | None, ...]:
        """What the choices stand for now, so that files which have come are taken in the next run."""
        if model in (NANO, *DOWNLOADS):
            return (model,)
        try:
            name = automatic(AUTOMATIC[model]) if model in AUTOMATIC else model
        except CheckpointError as error:  # which the run will tell
            return (str(error),)
        path = name and _path(name, model_files())
        seeing = find_beside(Path(path), loading.VISION_FILES, _part_folders()) if path and vision == AUTO else None
        return name, str(seeing)

    @classmethod
    def execute(cls, model: str, weight_dtype: str, vision: str, vae: str) -> io.NodeOutput:
        show = shown(cls.hidden and cls.hidden.unique_id)
        if model in AUTOMATIC:
            name = automatic(AUTOMATIC[model])
            _say(_taken(name, AUTOMATIC[model]), show)
            model = name or NANO
        vision, vae = _path(vision, vision_files()), _path(vae, vae_files())
        folders = [] if model == NANO else _part_folders()
        if model == NANO:
            path = nano.checkpoint(Path(folder_paths.get_temp_directory()))
        elif model in DOWNLOADS:
            path = _downloaded(DOWNLOADS[model], show)
        else:
            path = _path(model, model_files())
        return io.NodeOutput(*loading.load(path, vision, vae, weight_dtype, folders))


NODES = [LoadLance]
