"""Edits and subjects: pictures that are given, an instruction, and the scene that is asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from .scenes import BACKGROUNDS, COLORS, POSITIONS, Scene, a_background, another, jitter, single, two
from .words import article, setting

TO = {place: f"to {place.partition(' ')[2]}" for place in POSITIONS}


@dataclass(frozen=True)
class Edit:
    """An instruction that makes `target` of `source`."""

    kind: str
    source: Scene
    instruction: str
    target: Scene


def recolor(rng: random.Random) -> Edit:
    source = single(rng) if rng.random() < 0.6 else two(rng)
    i = rng.randrange(len(source.things))
    thing = source.things[i]
    color = another(rng, COLORS, thing.color)
    things = tuple(replace(t, color=color) if j == i else t for j, t in enumerate(source.things))
    return Edit("recolor", source, f"make the {thing.shape} {color}", replace(source, things=things))


def remove(rng: random.Random) -> Edit:
    source = two(rng)
    i = rng.randrange(2)
    target = replace(source, things=(source.things[1 - i],))
    return Edit("remove", source, f"remove the {source.things[i].shape}", target)


def add(rng: random.Random) -> Edit:
    target = two(rng)
    i = rng.randrange(2)
    new = target.things[i]
    return Edit("add", replace(target, things=(target.things[1 - i],)), f"add {article(new.sized)} {new.place}", target)


def move(rng: random.Random) -> Edit:
    source = single(rng)
    thing = source.things[0]
    place = another(rng, POSITIONS, thing.place)
    (x0, y0), (x, y) = POSITIONS[thing.place], POSITIONS[place]
    moved = replace(thing, place=place, x=thing.x - x0 + x, y=thing.y - y0 + y)
    return Edit("move", source, f"move the {thing.shape} {TO[place]}", replace(source, things=(moved,)))


def change_background(rng: random.Random) -> Edit:
    source = single(rng) if rng.random() < 0.6 else two(rng)
    background = another(rng, BACKGROUNDS, source.background)
    target = replace(source, background=background, graded=False)
    return Edit("background", source, f"change the background to {background}", target)


EDITS = (recolor, remove, add, move, change_background)


def an_edit(rng: random.Random) -> Edit:
    return rng.choice(EDITS)(rng)


def a_subject(rng: random.Random) -> tuple[tuple[Scene, ...], str, Scene]:
    """References, prompt and the scene that is asked for, in which what they show appears."""
    if rng.random() < 0.75:
        reference = single(rng)
        thing = reference.things[0]
        place = rng.choice(list(POSITIONS))
        x, y = POSITIONS[place]
        background = a_background(rng)
        target = Scene((replace(thing, x=x + jitter(rng), y=y + jitter(rng), place=place),), **background)
        return (reference,), f"the object from the picture {place} on {setting(target)}", target
    target = two(rng)
    x, y = POSITIONS["in the middle"]
    references = tuple(
        Scene((replace(thing, x=x + jitter(rng), y=y + jitter(rng)),), **a_background(rng)) for thing in target.things
    )
    first, second = target.things
    prompt = (
        f"the object from the first picture {first.place} and the object from the second picture {second.place} "
        f"on {setting(target)}"
    )
    return references, prompt, target
