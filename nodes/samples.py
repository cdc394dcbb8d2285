"""The pictures and clips that the workflows begin with, put into ComfyUI's input, so that they run when opened."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

SAMPLES = Path(__file__).resolve().parent.parent / "api" / "input"


def provide(folder: Path) -> None:
    """Copies those that `folder` lacks. One that is there, whatever it is, stays."""
    for sample in SAMPLES.rglob("*.*"):
        target = folder / sample.relative_to(SAMPLES)
        partial = target.with_name(target.name + ".partial")
        try:
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    shutil.copyfile(sample, partial)
                    partial.replace(target)
                finally:
                    partial.unlink(missing_ok=True)
        except OSError as error:
            logging.warning("Lance's workflows will lack %s: it cannot be written (%s).", target, error.strerror)
            return
