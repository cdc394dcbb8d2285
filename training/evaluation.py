"""How much of each task a packed model does right, by the judges of both worlds: what adaptive training goes by."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import comfy.model_management
import torch
from safetensors.torch import save_file

from ..lance_model import loading, nano
from . import hard, judge

# Task in training → the share of right results of a judge, over so many prompts of a seed.
MEASURES: dict[str, Callable[[judge.Judge, int, int], float]] = {
    task: lambda its_judge, count, seed, name=name: judge.right(its_judge, name, count, seed)
    for task, name in {
        "t2i": "text to image: colour and shape",
        "edit": "image edit: done, and the rest kept",
        "caption": "caption: colour and shape",
        "subject": "subject: colour and shape kept",
        "t2v": "text to video: motion",
        "i2v": "image to video: motion",
    }.items()
} | {
    category: lambda its_judge, count, seed, category=category: hard.right(its_judge, category, count, seed) / count
    for category in hard.CATEGORIES
}


def evaluate(
    packed: Path, count: int, steps: int = 6, seed: int = 1, tasks: Collection[str] = MEASURES
) -> dict[str, float]:
    """The shares of right results of a packed model. Leaves torch's random numbers and ComfyUI's mode as they were."""
    mode = comfy.model_management.in_training
    comfy.model_management.in_training = False
    try:
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(), torch.inference_mode():
            path = Path(folder) / "lance_nano.safetensors"
            tensors, metadata = nano.unpack(packed)
            save_file(tensors, path, metadata)
            tested = judge.Judge(*loading.load(path), steps=steps)
            return {task: MEASURES[task](tested, count, seed) for task in tasks}
    finally:
        comfy.model_management.in_training = mode


def results(models: dict[str, Path], count: int, steps: Collection[int] = (6, 12, 30)) -> str:
    """A table of the shares of right results of each model, by steps of the sampler; prompts of seed 0."""
    columns = [(name, n) for n in steps for name in models]
    shares = [evaluate(models[name], count, n, seed=0) for name, n in columns]
    rows = [["task", *(f"{name}, {n} steps" for name, n in columns)], ["---", *["---:"] * len(columns)]]
    rows += [[task, *(f"{its[task]:.0%}" for its in shares)] for task in MEASURES]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
