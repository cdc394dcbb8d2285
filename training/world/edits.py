"""Edits and subjects: pictures that are given, an instruction, and the scene that is asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from .scenes import BACKGROUNDS, COLORS, POSITIONS, Scene, Thing, a_background, another, jitter, single, two
from .words import article, setting


@dataclass(frozen=True)
class Edit:
    """An instruction that makes `target` of `source`."""

    kind: str
    source: Scene
    instruction: str
    target: Scene


# Steps: what is said, and the scene after it. Its shape tells a thing from the others.


def _with(scene: Scene, thing: Thing, **changed) -> Scene:
    things = tuple(replace(t, **changed) if t.shape == thing.shape else t for t in scene.things)
    return replace(scene, things=things)


def recolored(rng: random.Random, scene: Scene, thing: Thing) -> tuple[str, Scene]:
    color = another(rng, COLORS, thing.color)
    return f"make the {thing.shape} {color}", _with(scene, thing, color=color)


def removed(rng: random.Random, scene: Scene, thing: Thing) -> tuple[str, Scene]:
    return f"remove the {thing.shape}", replace(scene, things=tuple(t for t in scene.things if t.shape != thing.shape))


def moved(rng: random.Random, scene: Scene, thing: Thing) -> tuple[str, Scene]:
    place = another(rng, POSITIONS, thing.place)
    (x0, y0), (x, y) = POSITIONS[thing.place], POSITIONS[place]
    now = {"place": place, "x": thing.x - x0 + x, "y": thing.y - y0 + y}
    return f"move the {thing.shape} to {place.partition(' ')[2]}", _with(scene, thing, **now)


def background_changed(rng: random.Random, scene: Scene, thing: Thing | None = None) -> tuple[str, Scene]:
    background = another(rng, BACKGROUNDS, scene.background)
    return f"change the background to {background}", replace(scene, background=background, graded=False)


# Edits of one step


def recolor(rng: random.Random) -> Edit:
    source = single(rng) if rng.random() < 0.6 else two(rng)
    return Edit("recolor", source, *recolored(rng, source, rng.choice(source.things)))


def remove(rng: random.Random) -> Edit:
    source = two(rng)
    return Edit("remove", source, *removed(rng, source, rng.choice(source.things)))


def add(rng: random.Random) -> Edit:
    target = two(rng)
    i = rng.randrange(2)
    new = target.things[i]
    return Edit("add", replace(target, things=(target.things[1 - i],)), f"add {article(new.sized)} {new.place}", target)


def move(rng: random.Random) -> Edit:
    source = single(rng)
    return Edit("move", source, *moved(rng, source, source.things[0]))


def change_background(rng: random.Random) -> Edit:
    source = single(rng) if rng.random() < 0.6 else two(rng)
    return Edit("background", source, *background_changed(rng, source))


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
