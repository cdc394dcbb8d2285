"""Draws how a training went, from its `progress.csv`: each task's loss and share of right results, by steps.

    python -m comfyui_lance.training.chart FOLDER... > progress.svg

draws several trainings one after the other.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

from .report import LOSS, PROGRESS, RIGHT

WIDTH, HEIGHT, COLUMNS, MARGIN = 190, 110, 4, 26  # pixels of a task's picture, and how many stand side by side
COLORS = {LOSS: "#b9bec8", RIGHT: "#2f6fde"}

Curve = list[tuple[int, float]]


def read(progress: Path) -> dict[str, dict[str, Curve]]:
    """Task → `loss` or `right` → values by step. Of steps that were done again after a stop, the last ones count."""
    values: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    with progress.open(newline="") as file:
        for step, kind, task, value in csv.reader(file):
            values[task][kind][int(step)] = float(value)
    return {task: {kind: sorted(its.items()) for kind, its in kinds.items()} for task, kinds in sorted(values.items())}


def last_step(tasks: dict[str, dict[str, Curve]]) -> int:
    return max(step for kinds in tasks.values() for curve in kinds.values() for step, _ in curve)


def joined(trainings: list[dict[str, dict[str, Curve]]]) -> dict[str, dict[str, Curve]]:
    """Of trainings that go on from each other."""
    whole: dict[str, dict[str, Curve]] = {}
    done = 0
    for tasks in trainings:
        for task, kinds in tasks.items():
            for kind, curve in kinds.items():
                its = whole.setdefault(task, {}).setdefault(kind, [])
                its += [(done + step, value) for step, value in curve]
        done += last_step(tasks)
    return dict(sorted(whole.items()))


def _line(curve: Curve, steps: int, highest: float, color: str) -> str:
    points = " ".join(
        f"{step / steps * WIDTH:.1f},{(1 - min(value / highest, 1)) * HEIGHT:.1f}" for step, value in curve
    )
    return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"/>'


def draw(tasks: dict[str, dict[str, Curve]]) -> str:
    """SVG: a picture a task. Losses from zero to their highest, shares from none to all, with the last one in words."""
    steps = last_step(tasks)
    parts, across, down = [], WIDTH + MARGIN, HEIGHT + 2 * MARGIN
    for i, (task, kinds) in enumerate(tasks.items()):
        x, y = MARGIN / 2 + i % COLUMNS * across, MARGIN + i // COLUMNS * down
        words = f"{task}: {kinds[RIGHT][-1][1]:.0%}" if RIGHT in kinds else task
        highest = {LOSS: max((loss for _, loss in kinds.get(LOSS, [])), default=1) or 1, RIGHT: 1}
        parts.append(f'<g transform="translate({x} {y})"><text y="-7">{words}</text>')
        parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#e1e4e8"/>')
        parts += [_line(curve, steps, highest[kind], COLORS[kind]) for kind, curve in kinds.items()]
        parts.append("</g>")
    width, height = COLUMNS * across, -(-len(tasks) // COLUMNS) * down
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        "<style>text { font: 13px system-ui, sans-serif; fill: #30343b }</style>\n"
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    print(draw(joined([read(Path(folder) / PROGRESS) for folder in sys.argv[1:]])), end="")
