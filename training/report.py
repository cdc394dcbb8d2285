"""What training says of itself."""

from __future__ import annotations

import time
from collections import defaultdict


class Report:
    """Prints with the minutes since the start."""

    def __init__(self):
        self.started = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"[{(time.monotonic() - self.started) / 60:5.1f} min] {text}", flush=True)

    def shares(self, step: int, right: dict[str, float]) -> None:
        self(f"right at {step}: " + ", ".join(f"{task} {share:.0%}" for task, share in right.items()))


class Losses:
    """Mean losses by task since they were last told, and the pace."""

    def __init__(self, step: int, steps: int):
        self.begun, self.steps, self.started = step, steps, time.monotonic()
        self.of_task = defaultdict(list)

    def add(self, task: str, loss: float) -> None:
        self.of_task[task].append(loss)

    def told(self, step: int) -> str:
        pace = (time.monotonic() - self.started) / (step - self.begun)
        left = pace * (self.steps - step) / 60
        words = ", ".join(f"{task} {sum(losses) / len(losses):.3f}" for task, losses in sorted(self.of_task.items()))
        self.of_task.clear()
        return f"{step}/{self.steps} ({pace:.2f} s a step, {left:.0f} min left): {words}"
