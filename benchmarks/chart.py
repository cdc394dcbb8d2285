"""Draws the table that run.py prints, or the one in README.md, as a chart:

python benchmarks/chart.py benchmarks/README.md docs/speed.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

WIDTH, LEFT, BAR, ROOM = 760, 190, 18, 14  # pixels: of the page, of the names, of a bar, between tasks
COLORS = {"plugin": "#2f6fde", "plugin, compiled": "#1b4496", "naive": "#b9bec8", "reference": "#e08a2e"}


def read(text: str) -> dict[str, dict[str, float]]:
    """Task → run → time as a multiple of the plugin's, from tables with these three columns; an empty task is the one
    above."""
    out: dict[str, dict[str, float]] = {}
    columns, task = [], ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or len(cells) != len(columns):
            columns = cells if {"task", "run", "time"} <= set(cells) else []
            continue
        row = dict(zip(columns, cells))
        if row["time"].endswith("×"):
            task = row["task"] or task
            out.setdefault(task, {})[row["run"]] = float(row["time"].removesuffix("×"))
    return out


def draw(tasks: dict[str, dict[str, float]]) -> str:
    longest = max(time for runs in tasks.values() for time in runs.values())
    scale = (WIDTH - LEFT - 150) / longest
    y, parts = ROOM, []
    for task, runs in tasks.items():
        middle = y + len(runs) * BAR / 2 + 4
        parts.append(f'<text x="{LEFT - 12}" y="{middle}" text-anchor="end" font-weight="600">{task}</text>')
        for run, time in runs.items():
            width = round(time * scale, 1)
            words = f"{run} {time:.2f}×"
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width}" height="{BAR - 3}" rx="2" fill="{COLORS[run]}"/>')
            parts.append(f'<text x="{LEFT + width + 7}" y="{y + 12}">{words}</text>')
            y += BAR
        y += ROOM
    style = "font: 13px system-ui, sans-serif; fill: #30343b"
    page = f'<rect width="{WIDTH}" height="{y}" fill="#fff"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}">\n'
        f"<style>text {{ {style} }}</style>\n" + "\n".join([page, *parts]) + "\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("chart", type=Path)
    options = parser.parse_args()
    tasks = read(options.table.read_text(encoding="utf-8"))
    if not tasks:
        parser.error(f"{options.table} has no table with the columns task, run and time")
    options.chart.write_text(draw(tasks), encoding="utf-8")


if __name__ == "__main__":
    main()
