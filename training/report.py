"""What training says of itself: on the screen, in `log.txt`, and as figures in `progress.csv`."""

from __future__ import annotations

import csv
import time
from collections import defaultdict
from pathlib import Path

LOSS, RIGHT = "loss", "right"
PROGRESS = "progress.csv"  # step, loss or right, task, value


class Report:
    """Prints with the minutes since the start, and keeps it in a folder."""

    def __init__(self, folder: Path | None = None):
        self.folder, self.started = folder, time.monotonic()

    def __call__(self, text: str) -> None:
        line = f"[{(time.monotonic() - self.started) / 60:5.1f} min] {text}"
        print(line, flush=True)
        if self.folder is not None:
            with (self.folder / "log.txt").open("a") as file:
                print(line, file=file)

    def figures(self, step: int, kind: str, of_tasks: dict[str, float]) -> None:
        """The losses or the shares of right results, by task."""
        if self.folder is not None:
            with (self.folder / PROGRESS).open("a", newline="") as file:
                csv.writer(file).writerows([step, kind, task, f"{value:.4f}"] for task, value in of_tasks.items())

    def losses(self, losses: Losses, step: int, stage: str) -> None:
        means = losses.means()
        words = ", ".join(f"{task} {loss:.3f}" for task, loss in means.items())
        self(f"{step}/{losses.steps} {stage} ({losses.pace(step)}): {words}")
        self.figures(step, LOSS, means)

    def shares(self, right: dict[str, float], step: int) -> None:
        self(f"right at {step}: " + ", ".join(f"{task} {share:.0%}" for task, share in right.items()))
        self.figures(step, RIGHT, right)


class Recent:
    """A running mean, mostly of the last fifty values."""

    def __init__(self):
        self.value = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else self.value + 0.02 * (value - self.value)


class Losses:
    """Mean losses by task since they were last told, and the pace."""

    def __init__(self, step: int, steps: int):
        self.begun, self.steps, self.started = step, steps, time.monotonic()
        self.of_task = defaultdict(list)

    def add(self, task: str, loss: float) -> None:
        self.of_task[task].append(loss)

    def means(self) -> dict[str, float]:
        means = {task: sum(losses) / len(losses) for task, losses in sorted(self.of_task.items())}
        self.of_task.clear()
        return means

    def pace(self, step: int) -> str:
        pace = (time.monotonic() - self.started) / (step - self.begun)
        return f"{pace:.2f} s a step, {pace * (self.steps - step) / 60:.0f} min left"
