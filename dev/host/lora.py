"""LoRAs as the shipped workflows train them, in a server of their own."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import NamedTuple

from . import workflows
from .server import ComfyServer


class Trained(NamedTuple):
    file: Path
    pictures: list[Path]  # what the workflow tries it on
    seconds: float  # of the whole workflow, on one thread


def train(workflow: str, folder: Path) -> Trained:
    """Runs a workflow and keeps what it makes in the folder. Takes minutes."""
    with ComfyServer() as server:
        started = time.monotonic()
        entry = server.wait(server.queue(workflows.load(workflow)))
        seconds = time.monotonic() - started
        (file,) = (server.base / "output" / "loras").glob("*.safetensors")
        kept = [shutil.copy(path, folder / f"{workflow}{path.suffix}") for path in (file, *server.outputs(entry))]
    return Trained(Path(kept[0]), list(map(Path, kept[1:])), seconds)
