"""Edits of two steps: one instruction that asks for two changes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from ..edits import TO, Edit
from ..recognition import same_things
from ..scenes import BACKGROUNDS, COLORS, POSITIONS, Scene, Thing, another, two
from ..words import article
from .recognition import detect

Step = Callable[[random.Random, Scene, Thing], tuple[str, Scene]]  # → words, and the scene after it


def _with(scene: Scene, thing: Thing, **changed) -> Scene:
    """Its shape tells a thing from the other."""
    things = tuple(replace(t, **changed) if t.shape == thing.shape else t for t in scene.things)
    return replace(scene, things=things)


def recolor(rng: random.Random, scene: Scene, thing: Thing) -> tuple[str, Scene]:
    color = another(rng, COLORS, thing.color)
    return f"make the {thing.shape} {color}", _with(scene, thing, color=color)


def remove(rng: random.Random, scene: Scene, thing: Thing) -> tuple[str, Scene]:
    return f"remove the {thing.shape}", replace(scene, things=tuple(t for t in scene.things if t.shape != thing.shape))


def add(rng: random.Random, scene: Scene, thing: Thing) -> tuple[str, Scene]:
    return f"add {article(thing.sized)} {thing.place}", replace(scene, things=(*scene.things, thing))


def move(rng: random.Random, scene: Scene, thing: Thing) -> tuple[str, Scene]:
    place = another(rng, POSITIONS, thing.place)
    (x0, y0), (x, y) = POSITIONS[thing.place], POSITIONS[place]
    moved = {"place": place, "x": thing.x - x0 + x, "y": thing.y - y0 + y}
    return f"move the {thing.shape} {TO[place]}", _with(scene, thing, **moved)


def change_background(rng: random.Random, scene: Scene, thing: Thing) -> tuple[str, Scene]:
    background = another(rng, BACKGROUNDS, scene.background)
    return f"change the background to {background}", replace(scene, background=background, graded=False)


# Pairs of steps, each with which of two things it is about; of the source with both, and with the first alone.
OF_BOTH = (
    ((recolor, 0), (recolor, 1)),
    ((recolor, 0), (remove, 1)),
    ((recolor, 0), (change_background, 0)),
    ((remove, 1), (change_background, 0)),
)
OF_ONE = (
    ((recolor, 0), (add, 1)),
    ((change_background, 0), (add, 1)),
    ((recolor, 0), (move, 0)),
    ((change_background, 0), (move, 0)),
)


def two_steps(rng: random.Random) -> Edit:
    whole = two(rng)
    things = rng.sample(whole.things, 2)
    steps = list(rng.choice(OF_BOTH + OF_ONE))
    source = whole if tuple(steps) in OF_BOTH else replace(whole, things=(things[0],))
    rng.shuffle(steps)
    target, words = source, []
    for step, i in steps:
        told, target = step(rng, target, things[i])
        words.append(told)
    return Edit("two steps", source, " and ".join(words), target)


def edited(edit: Edit, picture) -> bool:
    """Whether both steps are done in a picture (PIL, or an array [64, 64, 3] in 0..255), and the rest kept."""
    background, found = detect(picture)
    return background == edit.target.background and same_things(found, edit.target)
