"""Draws the table that fast.py makes: results that are right, and their distance from 200 steps, over passes.

python benchmarks/fast_chart.py benchmarks/fast.csv docs/fast.svg
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import dataclass
from pathlib import Path

Row = dict[str, str]

WIDTH, LEFT, TOP, GAP = 760, 52, 84, 16  # pixels
PANEL, SHARES, LEVELS = 218, 110, 170  # width of a task's column, heights of its two panels
TASKS = ("pictures", "edits", "clips")
PASSES, FARTHEST = (4.8, 58), 24.0  # what the axes show
TICKS = (6, 8, 12, 18, 27, 40, 56)
SERIES = {
    ("euler", "simple"): "#2f6fde",
    ("euler", "kl_optimal"): "#e08a2e",
    ("dpmpp_2m", "simple"): "#1b4496",
    ("dpmpp_2m", "kl_optimal"): "#a4431f",
}
CACHED, OTHERS, GRID = "#2f9e63", "#c3c8d1", "#e6e8ec"


@dataclass(frozen=True)
class Panel:
    """Of one task: x is passes on a logarithmic scale, y runs from `low` at the bottom to `high`."""

    left: float
    top: float
    height: float
    low: float
    high: float

    def at(self, passes: float, y: float) -> tuple[float, float]:
        """In pixels; what lies outside stands on the edge."""
        first, last = map(math.log, PASSES)
        part = min(max((math.log(passes) - first) / (last - first), 0), 1)
        share = (min(max(y, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.left + part * PANEL, 1), round(self.top + (1 - share) * self.height, 1)

    def axes(self, lines: list[tuple[float, str]], ticks: bool) -> list[str]:
        parts = []
        for y, words in lines:
            x, at = self.at(PASSES[0], y)
            parts.append(f'<path d="M{x} {at}h{PANEL}" stroke="{GRID}"/>')
            if self.left == LEFT:
                parts.append(f'<text x="{x - 6}" y="{at + 4}" text-anchor="end">{words}</text>')
        for passes in TICKS if ticks else ():
            x, at = self.at(passes, self.low)
            parts.append(f'<text x="{x}" y="{at + 17}" text-anchor="middle">{passes}</text>')
        return parts


def dot(at: tuple[float, float], color: str, radius: float = 3) -> str:
    return f'<circle cx="{at[0]}" cy="{at[1]}" r="{radius}" fill="{color}"/>'


def share(row: Row) -> float:
    return int(row["right"]) / int(row["prompts"])


def column(task: str, rows: list[Row], left: float) -> list[str]:
    """The two panels of a task, from its rows."""
    above = Panel(left, TOP, SHARES, 0.0, 1.0)
    below = Panel(left, TOP + SHARES + GAP, LEVELS, 0.0, FARTHEST)
    parts = [f'<text x="{left}" y="{TOP - 12}" font-weight="600">{task}</text>']
    parts += above.axes([(0.0, "0 %"), (0.5, "50 %"), (1.0, "100 %")], False)
    parts += below.axes([(0, "0"), (8, "8"), (16, "16"), (24, "24")], True)
    most = max(int(row["prompts"]) for row in rows)
    usual = [row for row in rows if float(row["start"]) == 0.4]
    near = {below.at(float(row["passes"]), float(row["levels"])) for row in usual if int(row["prompts"]) < most}
    parts += [dot(at, OTHERS, 1.5) for at in sorted({(round(x), round(y)) for x, y in near})]
    final = [row for row in usual if int(row["prompts"]) == most]
    lines = {name: [row for row in final if (row["sampler"], row["scheduler"]) == name] for name in SERIES}
    for panel, value in ((above, share), (below, lambda row: float(row["levels"]))):
        for name, color in SERIES.items():
            its = sorted((row for row in lines[name] if float(row["cache"]) == 0), key=lambda row: int(row["steps"]))
            places = [panel.at(float(row["passes"]), value(row)) for row in its]
            path = "L".join(f"{x} {y}" for x, y in places)
            parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
            parts += [dot(at, color) for at in places]
        cached = [row for row in final if float(row["cache"])]
        parts += [dot(panel.at(float(row["passes"]), value(row)), CACHED) for row in cached]
    return parts


def draw(rows: list[Row]) -> str:
    parts, x = [], LEFT
    legend = [(f"{sampler}, {scheduler}", color) for (sampler, scheduler), color in SERIES.items()]
    for words, color in [*legend, ("EasyCache", CACHED), ("others", OTHERS)]:
        parts += [dot((x + 4, 20), color, 4), f'<text x="{x + 13}" y="24">{words}</text>']
        x += 27 + 6.5 * len(words)
    words = "above: right results · below: levels of 255 from 200 steps, 24 and more at the top edge · across: passes"
    parts.append(f'<text x="{LEFT}" y="46">{words}</text>')
    for i, task in enumerate(TASKS):
        its = [row for row in rows if row["task"] == task]
        parts += column(task, its, LEFT + i * (PANEL + GAP)) if its else []
    height = TOP + SHARES + GAP + LEVELS + 30
    style = "font: 12px system-ui, sans-serif; fill: #30343b"
    page = f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>text {{ {style} }}</style>\n'
    return head + "\n".join([page, *parts]) + "\n</svg>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("chart", type=Path)
    options = parser.parse_args()
    with options.table.open(newline="") as rows:
        options.chart.write_text(draw(list(csv.DictReader(rows))), encoding="utf-8")


if __name__ == "__main__":
    main()
