"""What is trained when: the mix of tasks, in the stages of the paper, and the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

WARM_UP = 150  # steps, or a tenth of few
LAST = 0.03  # of the learning rate, at the end

Mixture = dict[str, float]  # how often each task is drawn, relative to the others

SIMPLE: Mixture = {
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
HARD: Mixture = {
    "single object": 0.2,
    "two objects": 0.5,
    "counting": 1,
    "colors": 0.2,
    "position": 1,
    "attribute binding": 1,
    "four objects": 1.2,
    "letters": 2,
    "two-step edits": 1.8,
    "two movers": 1.2,
    "questions": 1.4,
}


def scaled(mixture: Mixture, factor: float) -> Mixture:
    return {task: factor * weight for task, weight in mixture.items()}


@dataclass(frozen=True)
class Stage:
    """`share` is that of all steps, `start` and `end` are the tasks at its beginning and at its end."""

    name: str
    share: float
    start: Mixture
    end: Mixture
    curated: bool = False  # on what can be read back from the autoencoder's pictures alone
    adaptive: bool = False


ALIGNMENT: Mixture = {"caption": 5, "question": 2, "t2i": 4}
STAGES = (
    Stage("alignment", 0.05, ALIGNMENT, ALIGNMENT),
    Stage(  # of both experts
        "pre-training",
        0.25,
        {"t2i": 5, "caption": 2, "question": 2, "t2v": 2, "i2v": 1, "clip text": 1},
        {"t2i": 4, "caption": 1.5, "question": 1.5, "t2v": 2.5, "i2v": 1, "clip text": 1} | scaled(HARD, 0.2),
    ),
    Stage(  # edits and references come in and grow, and what is hard
        "multi-task",
        0.45,
        {"t2i": 4, "caption": 1, "question": 1, "t2v": 2, "i2v": 1, "clip text": 0.7, "rewrite": 0.2}
        | {"edit": 2, "subject": 1, "clip edit": 0.5, "subject clip": 0.5}
        | scaled(HARD, 0.2),
        SIMPLE | HARD,
        adaptive=True,
    ),
    Stage("fine-tuning", 0.25, SIMPLE | HARD, SIMPLE | HARD, curated=True, adaptive=True),
)


def stage_at(progress: float, stages: tuple[Stage, ...] = STAGES) -> tuple[Stage, float]:
    """The stage when that share of all steps is done, and the share of it that is done."""
    for stage in stages:
        if progress < stage.share:
            return stage, progress / stage.share
        progress -= stage.share
    return stages[-1], 1.0


def mixture(stage: Stage, progress: float) -> Mixture:
    """Of a stage, when that share of it is done. A task that it does not begin with grows from nothing."""
    return {task: stage.start.get(task, 0) * (1 - progress) + weight * progress for task, weight in stage.end.items()}


def adapted(mixture: Mixture, right: dict[str, float]) -> Mixture:
    """A mixture that follows the state of the tasks: `right` is the share of right results of those that are judged.

    What is half right keeps its weight; what is all wrong is drawn 1.75 times as often, what is all right a quarter as
    often, so that it is not forgotten.
    """
    return {task: weight * (0.25 + 1.5 * (1 - right.get(task, 0.5))) for task, weight in mixture.items()}


def learning_rate(step: int, steps: int) -> float:
    """Of the highest rate: a warm-up, then half a cosine."""
    warm = min(1.0, (step + 1) / min(WARM_UP, 0.1 * steps))
    return warm * (LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))
