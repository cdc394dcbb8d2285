"""From files on disk to the state dicts of Lance's parts, or one clear sentence.

A part is recognised by what its file's header says, so a wrong file is refused before any weight is read. Layouts:

- the official repository: Lance_3B/model.safetensors, Qwen2.5-VL-ViT/vit.safetensors, Wan2.2_VAE.pth
- the parts in ComfyUI's own folders (diffusion_models, text_encoders, vae)
- a single file in ComfyUI's checkpoint layout (model.diffusion_model.*, text_encoders.*, vae.*)
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from .config import Shape

MARK = "language_model.model.layers.0.self_attn.q_proj_moe_gen.weight"
VISION_MARK = "patch_embed.proj.weight"
DOWNLOAD = "Download Lance_3B or Lance_3B_Video from the official Lance repository into models/lance."

# Where a key of the official files, or of a single-file checkpoint, belongs. The first prefix that fits wins.
LANGUAGE = {"language_model.model.embed_tokens.": "embed_tokens.", "language_model.lm_head.": "lm_head."}
DROPPED = ("latent_pos_embed.",)  # a fixed table, computed where it is needed
VISION_PREFIXES = ("vit_model.", "visual.", "text_encoders.visual.")
CHECKPOINT_PREFIX = "model.diffusion_model."
TEXT_ENCODER_PREFIX = "text_encoders."
VAE_PREFIX = "vae."


class CheckpointError(ValueError):
    """A file that is not what was asked for; the message is meant for the user."""


@dataclass
class Header:
    """What a safetensors file says of itself."""

    path: Path
    shapes: dict[str, Shape]
    dtypes: dict[str, str]
    metadata: dict[str, str] = field(default_factory=dict)


def read_header(path: str | os.PathLike) -> Header:
    """Header of a safetensors file: names, shapes and dtypes (as safetensors spells them) of its tensors.

    Raises CheckpointError for anything that is not a whole safetensors file.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path.name} is a folder; choose the model.safetensors inside it.")
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}. {DOWNLOAD}")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
        if start.startswith(b"version https://git-lfs"):
            raise CheckpointError(
                f"{path.name} is a Git LFS pointer, not the weights themselves. Run `git lfs pull` in its repository, or "
                "download the file from its web page.")
        if len(start) < 8:
            raise CheckpointError(f"{path.name} is empty or cut off ({size} bytes). Download it again.")
        length = struct.unpack("<Q", start[:8])[0]
        if length > 100_000_000 or start[8:9] != b"{":
            raise CheckpointError(f"{path.name} is not a safetensors file. {DOWNLOAD}")
        file.seek(8)
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        metadata = entries.pop("__metadata__", None) or {}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        dtypes = {name: entry["dtype"] for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        if len(raw) < length:
            raise CheckpointError(_truncated(path, size, 8 + length)) from None
        raise CheckpointError(f"{path.name} is not a valid safetensors file: its header cannot be read. Download it again.") from None
    if 8 + length + end > size:
        raise CheckpointError(_truncated(path, size, 8 + length + end))
    return Header(path, shapes, dtypes, metadata)


def _truncated(path: Path, size: int, expected: int) -> str:
    return f"{path.name} is incomplete: it has {size:,} of {expected:,} bytes. Download it again."


def transformer_prefix(header: Header) -> str:
    """The prefix of the transformer's keys; raises CheckpointError, saying what the file is, if it holds no Lance."""
    shapes, name = header.shapes, header.path.name
    marked = next((key for key in shapes if key.endswith(MARK)), None)
    if marked is not None:
        prefix = marked[: -len(MARK)]
        channels = shapes.get(prefix + "llm2vae.weight", (None,))[0]
        if channels == 48:
            return prefix
        if channels is not None:
            raise CheckpointError(
                f"{name} is a BAGEL model ({channels} latent channels); Lance, its relative, has 48. {DOWNLOAD}")
        raise CheckpointError(f"{name} lacks Lance's latent projections (vae2llm, llm2vae); the file is not complete. {DOWNLOAD}")
    raise CheckpointError(f"{name} is {_describe(shapes)}, not a Lance transformer. {DOWNLOAD}")


def _describe(shapes: dict[str, Shape]) -> str:
    """What a file without a generation expert probably is."""
    def has(*parts: str) -> bool:
        return any(part in key for key in shapes for part in parts)

    if has("lora_A", "lora_B", "lora_up", "lora_down"):
        return "a LoRA (load it with a LoRA loader after Load Lance)"
    if any(key.endswith(MARK.replace(".weight", ".qweight")) for key in shapes):
        return "a Lance with packed 4-bit weights, which this version cannot load"
    if has("vit_model.") or VISION_MARK in shapes:
        return "a vision encoder"
    if has("decoder.middle.0.residual", "decoder.22.bias"):
        return "a VAE"
    if has("visual.blocks."):
        return "a Qwen2.5-VL model without Lance's generation expert"
    if has("layers.0.self_attn.q_proj."):
        return "a language model without Lance's generation expert (an understanding-only extract cannot make pictures)"
    return "another kind of model"


def is_vision(header: Header) -> bool:
    return any(prefix + VISION_MARK in header.shapes for prefix in ("", *VISION_PREFIXES))


@dataclass
class Keys:
    """For each part, its own key → the file's key."""

    model: dict[str, str] = field(default_factory=dict)
    language: dict[str, str] = field(default_factory=dict)
    vision: dict[str, str] = field(default_factory=dict)
    vae: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def assign(header: Header, prefix: str = "") -> Keys:
    """The part to which each key of a file belongs. `prefix` is that of the transformer's keys."""
    keys = Keys()
    vision = is_vision(header)
    for key in header.shapes:
        bare = key[len(prefix):] if key.startswith(prefix) else key
        bare = bare.removeprefix(TEXT_ENCODER_PREFIX)
        language = next((p for p in (*LANGUAGE, *LANGUAGE.values()) if bare.startswith(p)), None)
        if bare.startswith(DROPPED):
            continue
        if language is not None:
            keys.language[LANGUAGE.get(language, language) + bare[len(language):]] = key
        elif key.startswith(VAE_PREFIX):
            keys.vae[key[len(VAE_PREFIX):]] = key
        elif bare.startswith(("vit_model.", "visual.")):
            keys.vision["visual." + bare.split(".", 1)[1]] = key
        elif vision and bare.startswith(("blocks.", "merger.", "patch_embed.")):
            keys.vision["visual." + bare] = key
        elif bare.startswith(("language_model.", "time_embedder.", "vae2llm.", "llm2vae.")):
            keys.model[bare] = key
        else:
            keys.unknown.append(key)
    return keys


def vision_settings(header: Header) -> dict:
    """The vision encoder's config.json: from the file's metadata, or from beside the file."""
    text = header.metadata.get("vision_config")
    beside = header.path.with_name("config.json")
    if text is None and beside.is_file():
        text = beside.read_text(encoding="utf-8")
    if text is None:
        return {}
    try:
        settings = json.loads(text)
        return settings.get("vision_config", settings)
    except (ValueError, AttributeError):
        raise CheckpointError(f"The vision encoder's config.json beside {header.path.name} is not valid JSON. Download it again.") from None


def find_beside(transformer: Path, names: tuple[str, ...], folders: list[Path] = ()) -> Path | None:
    """A file of the official layout, sought from the transformer's folder upwards (two levels), then in `folders`."""
    for folder in (transformer.parent, transformer.parent.parent, *folders):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None
