"""Judges the demonstration model on what is hard in its world, by category."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from comfy_api.latest import InputImpl, Types

from ..nodes.resolution import KEEP
from . import world
from .judge import Judge, image
from .world import hard


@dataclass(frozen=True)
class Category:
    """`make` takes a chance to an example, `texts` are its words, `right` is whether what the model makes is right."""

    make: Callable[[random.Random], object]
    texts: Callable[[object], tuple[str, ...]]
    right: Callable[[Judge, object, int], bool]


def picture(judge: Judge, asked: hard.Asked, seed: int) -> bool:
    (made,) = judge.made(asked.prompt, seed)
    return asked.right(made)


def two_step_edit(judge: Judge, edit: world.Edit, seed: int) -> bool:
    return hard.edited(edit, judge.edited(edit, seed))


def two_movers(judge: Judge, clip: hard.Movers, seed: int) -> bool:
    return clip.right(judge.made(clip.describe(), seed, world.FRAMES))


def question(judge: Judge, asked: hard.Question, seed: int) -> bool:
    frames = torch.cat([image(scene) for scene in asked.shown])
    shown = {"images": {"image0": frames}, "image_resolution": KEEP}
    if len(frames) > 1:
        components = Types.VideoComponents(images=frames, frame_rate=Fraction(12))
        shown = {"video": InputImpl.VideoFromComponents(components), "video_resolution": KEEP}
    return asked.right(judge.answered({"task": "question", "question": asked.asked}, shown))


CATEGORIES: dict[str, Category] = {
    name: Category(make, lambda asked: (asked.prompt,), picture) for name, make in hard.PICTURES.items()
} | {
    "two-step edits": Category(hard.two_steps, lambda edit: (edit.instruction,), two_step_edit),
    "two movers": Category(hard.two_movers, lambda clip: (clip.describe(),), two_movers),
    "questions": Category(hard.a_question, lambda asked: (asked.asked, asked.answer), question),
}


def right(judge: Judge, category: str, count: int, seed: int = 0) -> int:
    """How many of `count` results are right; the same prompts and noise for the same seed."""
    rng, its = random.Random(f"{category} {seed}"), CATEGORIES[category]
    return sum(its.right(judge, its.make(rng), 1000 * seed + i) for i in range(count))


def texts(count: int = 500) -> set[str]:
    """What is said in all categories; what asks for pictures and clips also as sentences, as it is trained on."""
    said = set()
    for name, category in CATEGORIES.items():
        rng = random.Random(name)
        its = {text for _ in range(count) for text in category.texts(category.make(rng))}
        said |= its if name == "questions" else its | set(map(world.sentence, its))
    return said
