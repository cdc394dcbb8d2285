"""Edits of two steps: one instruction that asks for two changes."""

from __future__ import annotations

import random
from dataclasses import replace

from ..edits import Edit, background_changed, moved, recolored, removed
from ..recognition import same_things
from ..scenes import Scene, Thing, two
from ..words import article
from .recognition import detect


def added(rng: random.Random, scene: Scene, thing: Thing) -> tuple[str, Scene]:
    return f"add {article(thing.sized)} {thing.place}", replace(scene, things=(*scene.things, thing))


# Pairs of steps, each with which of two things it is about; of the source with both, and with the first alone.
OF_BOTH = (
    ((recolored, 0), (recolored, 1)),
    ((recolored, 0), (removed, 1)),
    ((recolored, 0), (background_changed, 0)),
    ((removed, 1), (background_changed, 0)),
)
OF_ONE = (
    ((recolored, 0), (added, 1)),
    ((background_changed, 0), (added, 1)),
    ((recolored, 0), (moved, 0)),
    ((background_changed, 0), (moved, 0)),
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
