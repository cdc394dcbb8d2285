"""What is trained when: the mix of tasks, in the stages of the paper, and the learning rate."""

from __future__ import annotations

import math

WARM_UP = 150  # steps
LAST = 0.03  # of the learning rate, at the end

FINE_TUNING = {
    "t2i": 3.5,
    "caption": 0.8,
    "question": 0.8,
    "rewrite": 0.3,
    "edit": 5,
    "subject": 2.6,
    "t2v": 0.8,
    "i2v": 0.4,
    "clip text": 0.5,
    "clip edit": 0.7,
    "subject clip": 0.5,
}
# Weights of the tasks: at the beginning and at the end of each stage of the paper.
STAGES = (
    # (share of the steps, tasks at its beginning, tasks at its end)
    # alignment
    (0.05, {"caption": 5, "question": 2, "t2i": 4}, {"caption": 5, "question": 2, "t2i": 4}),
    # pre-training of both experts
    (
        0.30,
        {"t2i": 5, "caption": 2, "question": 2, "t2v": 2, "i2v": 1, "clip text": 1},
        {"t2i": 4, "caption": 1.5, "question": 1.5, "t2v": 2.5, "i2v": 1, "clip text": 1},
    ),
    # multi-task: edits and references come in and grow
    (
        0.35,
        {"t2i": 4, "caption": 1, "question": 1, "t2v": 2, "i2v": 1, "clip text": 0.7, "rewrite": 0.2}
        | {"edit": 2, "subject": 1, "clip edit": 0.5, "subject clip": 0.5},
        FINE_TUNING,
    ),
    (0.30, FINE_TUNING, FINE_TUNING),
)


def mixture(progress: float) -> dict[str, float]:
    """How often each task is drawn, relative to the others, when that share of the steps is done."""
    for share, start, end in STAGES:
        if progress <= share or (share, start, end) == STAGES[-1]:
            t = min(progress / share, 1.0)
            return {task: start[task] * (1 - t) + end[task] * t for task in start}
        progress -= share
    raise AssertionError


def learning_rate(step: int, steps: int) -> float:
    """Of the highest rate: a warm-up, then half a cosine."""
    warm = min(1.0, (step + 1) / WARM_UP)
    return warm * (LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))
