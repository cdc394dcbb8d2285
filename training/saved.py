"""What a part of training has come to, in a file, so that it can be stopped at any time and goes on from there."""

from __future__ import annotations

import random
from pathlib import Path

import torch


def save_whole(what, file: Path) -> None:
    """`file` is there whole or as it was, whenever this is stopped."""
    partial = file.with_suffix(".partial")
    torch.save(what, partial)
    partial.replace(file)


class Saved:
    """`parts` have a `state_dict`: model, optimizers, schedules. They begin as `file` has them, if there is one.

    Whether or not it was stopped, all random numbers begin anew where it is saved, so that the result is the same.
    """

    EVERY = 250  # steps

    def __init__(self, file: Path, seed: int, **parts):
        self.file, self.seed, self.parts, self.step = file, seed, parts, 0
        self.right: dict[str, float] = {}  # the shares of right results, by task, when they were last judged
        if file.exists():
            saved = torch.load(file, weights_only=True, map_location="cpu")
            for name, part in parts.items():
                part.load_state_dict(saved["parts"][name])
            self.step, self.right = saved["step"], saved["right"]

    @property
    def due(self) -> bool:
        return self.step % self.EVERY == 0

    def chance(self, rank: int = 0) -> random.Random:
        """Random numbers from this step on, and torch's set likewise."""
        rng = random.Random(f"{self.seed} {self.step} {rank}")
        torch.manual_seed(rng.getrandbits(32))
        return rng

    def save(self) -> None:
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        save_whole({"parts": parts, "step": self.step, "right": self.right}, self.file)
