"""Plain English about scenes: descriptions, which are prompts and captions, and questions."""

from __future__ import annotations

import random

from .scenes import Scene

NUMBERS = ("zero", "one", "two", "three", "four", "five")


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def setting(scene: Scene) -> str:
    return f"{article(('graded ' if scene.graded else '') + scene.background)} background"


def describe(scene: Scene) -> str:
    """A caption, which is also a prompt."""
    things = scene.things
    if len({(t.shape, t.color) for t in things}) < len(things):
        what = f"{NUMBERS[len(things)]} {plural(things[0].sized)}"
    else:
        what = " and ".join(f"{article(t.sized)} {t.place}" for t in things)
    return f"{what} on {setting(scene)}"


def question(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """A question about a scene and its answer."""
    things = scene.things
    same = len(things) > 1 and things[0].name == things[1].name
    thing = rng.choice(things)
    asked = ["color", "shape", "count", "background"] + ([] if same else ["place"])
    kind = rng.choice(asked)
    be = "are" if same else "is"
    many = plural if same else str
    objects = many("object")
    if kind == "color":
        return f"What color {be} the {many(thing.shape)}?", thing.color
    if kind == "shape":
        return f"What shape {be} the {thing.color} {objects}?", thing.shape
    if kind == "count":
        return "How many objects are there?", NUMBERS[len(things)]
    if kind == "background":
        return "What color is the background?", scene.background
    return f"Where is the {thing.name}?", thing.place
