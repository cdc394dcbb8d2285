"""Which of the files on disk is Lance's own checkpoint, by its name and its header."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from .checkpoint import WEIGHTS, CheckpointError, read_header, transformer_prefix

PICTURES, CLIPS = "Lance_3B", "Lance_3B_Video"


def _title(name: str) -> str:
    """What a file says that it is: its folder's name if it has the official one, else its own."""
    path = PurePosixPath(name)
    return (path.parent.name if path.name == WEIGHTS else path.stem).lower()


def official(names: Iterable[str], model: str) -> str | None:
    """The file that is called as the official `model`: in its folder, or flat as `lance_3b.safetensors`."""
    return next((name for name in names if _title(name) == model.lower()), None)


def is_for_clips(name: str) -> bool:
    return "video" in name.lower()


def choose(files: Mapping[str, Path], model: str) -> str | None:
    """Of these files, by name, the Lance checkpoint for what `model` is for; None where none is Lance's.

    Official names come before others, such as those of converted files, and a checkpoint for something else before
    none. Raises CheckpointError if the only ones that are called Lance cannot be read.
    """
    titles = (PICTURES.lower(), CLIPS.lower())
    names = sorted(files, key=lambda n: (is_for_clips(n) != (model == CLIPS), _title(n) not in titles, n))
    unreadable = None
    for name in names:
        try:
            header = read_header(files[name])
        except CheckpointError as error:
            unreadable = unreadable or (error if "lance" in name.lower() else None)
            continue
        try:
            transformer_prefix(header)
        except CheckpointError:  # a LoRA, or another model
            continue
        return name
    if unreadable is not None:
        raise unreadable
    return None
