"""From files on disk to the keys of Lance's parts, or one clear sentence.

A part is recognised by what its file's header says, so a wrong file is refused before any weight is read. Layouts:

- the official repository: Lance_3B/model.safetensors, Qwen2.5-VL-ViT/vit.safetensors, Wan2.2_VAE.pth
- the parts in ComfyUI's own folders (diffusion_models, text_encoders, vae); the token embeddings and the head may be
  in the text encoder's file
- a single file in ComfyUI's checkpoint layout (model.diffusion_model.*, text_encoders.*, vae.*)

In each of them the experts' projections may be quantised, see `quantised`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .config import Shape

MARK = "language_model.model.layers.0.self_attn.q_proj_moe_gen."
MARKS = (MARK + "weight", MARK + "qweight")  # plain or packed
DOWNLOAD = "Download Lance_3B or Lance_3B_Video from the official Lance repository into models/lance."
WEIGHTS = "model.safetensors"  # the official name, in a folder that says which model it is
# What the parts beside a transformer are called, here and in ComfyUI's folders.
VISION_FILES = ("Qwen2.5-VL-ViT/vit.safetensors", "vit.safetensors")
VAE_FILES = ("Wan2.2_VAE.safetensors", "wan2.2_vae.safetensors", "Wan2.2_VAE.pth")

# Where a key belongs, by the first prefix that fits: the prefix in the file, the part, the prefix in that part.
PREFIXES = (
    ("language_model.model.embed_tokens.", "language", "embed_tokens."),
    ("language_model.lm_head.", "language", "lm_head."),
    ("embed_tokens.", "language", "embed_tokens."),
    ("lm_head.", "language", "lm_head."),
    ("language_model.", "model", "language_model."),
    ("time_embedder.", "model", "time_embedder."),
    ("vae2llm.", "model", "vae2llm."),
    ("llm2vae.", "model", "llm2vae."),
    ("scaled_fp8", "model", "scaled_fp8"),  # says that the file's fp8 weights have scales
    ("vit_model.", "vision", "visual."),
    ("visual.", "vision", "visual."),
    ("patch_embed.", "vision", "visual.patch_embed."),
    ("blocks.", "vision", "visual.blocks."),
    ("merger.", "vision", "visual.merger."),
    ("vae.", "vae", ""),
)
DROPPED = "latent_pos_embed."  # a fixed table, computed where it is needed
TEXT_ENCODER_PREFIX = "text_encoders."  # in a single file


class CheckpointError(ValueError):
    """A file that is not what was asked for; the message is meant for the user."""

    __module__ = "lance"  # the page prints it, and the true one begins with the path of the plugin's folder

    def __init__(self, message: str):
        # A file's names may be anything, and of any length: they stay within one line, and the cure at the end is kept.
        message = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in message)
        super().__init__(message if len(message) < 600 else f"{message[:300]} … {message[-250:]}")


@dataclass
class Header:
    """What a safetensors file says of itself."""

    path: Path
    shapes: dict[str, Shape]
    dtypes: dict[str, str]
    metadata: dict[str, str] = field(default_factory=dict)


def called(path: Path) -> str:
    """A file's name in a message."""
    return f"{path.parent.name}/{path.name}" if path.name == WEIGHTS else path.name


def check_file(path: Path) -> None:
    """Raises CheckpointError for what cannot hold weights, whatever its format."""
    name = called(path)
    if path.is_dir():
        raise CheckpointError(f"{name} is a folder; choose the model.safetensors inside it.")
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}. {DOWNLOAD}")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise CheckpointError(f"{name} is empty. Download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{name} is a Git LFS pointer, not the weights themselves. Run `git lfs pull` in its repository, or "
            "download the file from its web page."
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{name} is a web page, not the weights themselves. Download it again, by the page's download link."
        )
    if start.startswith(b"GGUF"):
        raise CheckpointError(
            f"{name} is a GGUF file, which Lance cannot be loaded from, as ComfyUI's operations do not know its "
            "formats. Take a safetensors file, or make a small one with `scripts/convert.py --dtype fp8`."
        )


def read_header(path: str | os.PathLike) -> Header:
    """Header of a safetensors file: names, shapes and dtypes (as safetensors spells them) of its tensors.

    Raises CheckpointError for anything that is not a whole safetensors file.
    """
    path = Path(path)
    check_file(path)
    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
            dtypes = {name: piece.get_dtype() for name, piece in slices.items()}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(
            f"{called(path)} ({path.stat().st_size:,} bytes) is incomplete, damaged or not a safetensors file: "
            f"{error}. Download it again."
        ) from None
    empty = next((name for name, shape in shapes.items() if 0 in shape), None)
    if empty is not None:
        raise CheckpointError(f"{called(path)} is damaged: its tensor {empty} is empty. Download it again.")
    return Header(path, shapes, dtypes, metadata)


def transformer_prefix(header: Header) -> str:
    """The prefix of the transformer's keys; raises CheckpointError, saying what the file is, if it holds no Lance."""
    shapes, name = header.shapes, called(header.path)
    marked = next((key for key in shapes if key.endswith(MARKS)), None)
    if marked is None:
        raise CheckpointError(f"{name} is {_describe(shapes)}, not a Lance transformer. {DOWNLOAD}")
    prefix = marked[: marked.rindex(MARK)]
    if prefix + "llm2vae.bias" not in shapes:
        raise CheckpointError(f"{name} is not complete: it lacks the latent projections (vae2llm, llm2vae). {DOWNLOAD}")
    channels = math.prod(shapes[prefix + "llm2vae.bias"])
    if channels != 48:
        raise CheckpointError(
            f"{name} is a BAGEL model ({channels} latent channels); Lance, its relative, has 48. {DOWNLOAD}"
        )
    return prefix


def _describe(shapes: dict[str, Shape]) -> str:
    """What a file without a generation expert probably is."""

    def has(*parts: str) -> bool:
        return any(part in key for key in shapes for part in parts)

    if has("lora_A", "lora_B", "lora_up", "lora_down"):
        return "a LoRA (a LoRA loader after Load Lance takes it)"
    if has("vit_model.") or "patch_embed.proj.weight" in shapes:
        return "a vision encoder"
    if any(key.startswith(("decoder.mid", "decoder.22.")) for key in shapes):
        return "a VAE"
    if has("visual.blocks."):
        return "a Qwen2.5-VL model without Lance's generation expert"
    if has("layers.0.self_attn.q_proj."):
        return "a language model without Lance's generation expert (an understanding-only extract cannot make pictures)"
    return "another kind of model"


@dataclass
class Part:
    """Those tensors of a file that make up one part of Lance: the part's own key → the file's key."""

    header: Header
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: self.header.shapes[key] for name, key in self.keys.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        return {name: self.header.dtypes[key] for name, key in self.keys.items()}


@dataclass
class Parts:
    """What a file holds. `unknown` are keys of no part."""

    model: Part
    language: Part
    vision: Part
    vae: Part
    unknown: list[str]


def place(key: str) -> tuple[str, str] | None:
    """The part to which a key without its file's prefix belongs, and its name there; None for a key of no part."""
    return next(((part, new + key[len(old) :]) for old, part, new in PREFIXES if key.startswith(old)), None)


def assign(header: Header, prefix: str = "") -> Parts:
    """The part to which each key of a file belongs. `prefix` is that of the transformer's keys."""
    parts = Parts(*(Part(header) for _ in range(4)), unknown=[])
    for key in header.shapes:
        bare = key.removeprefix(prefix).removeprefix(TEXT_ENCODER_PREFIX)
        found = place(bare)
        if found is not None:
            getattr(parts, found[0]).keys[found[1]] = key
        elif not bare.startswith(DROPPED):
            parts.unknown.append(key)
    return parts


def vision_settings(header: Header) -> dict:
    """The vision encoder's config.json: from the file's metadata, or from beside the file; {} where there is none."""
    beside = header.path.with_name("config.json")
    text = header.metadata.get("vision_config") or (beside.read_bytes() if beside.is_file() else "{}")
    try:
        settings = json.loads(text)
        settings = settings.get("vision_config", settings)
        settings.keys()
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointError(
            f"The vision encoder's config.json of {called(header.path)} is not valid JSON. Download it again."
        ) from None
    return settings


def find_beside(transformer: Path, names: tuple[str, ...], folders: Iterable[Path] = ()) -> Path | None:
    """A file of the official layout, sought from the transformer's folder upwards (two levels), then in `folders`."""
    for folder in (transformer.parent, transformer.parent.parent, *folders):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None
