"""Prompts for pictures by category, each with a scene that is right and the rule by which any picture is judged.

The categories are those of GenEval as far as it has them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..letters import LETTERS
from ..recognition import Detection, same_things
from ..scenes import COLORS, OUTLINES, Scene, Thing, a_background, another, jitter, single
from ..words import NUMBERS, article, plural, setting
from .recognition import detect, radius, read_letters

LEFT, RIGHT, INSIDE = "to the left of", "to the right of", "inside"
BESIDE = {LEFT: (-1, 0), RIGHT: (1, 0), "above": (0, -1), "below": (0, 1)}
RELATIONS = (*BESIDE, INSIDE)
ROOMY = ("circle", "square")  # have room for another thing
CORNERS = {
    "at the top left": (18, 18),
    "at the top right": (46, 18),
    "at the bottom left": (18, 46),
    "at the bottom right": (46, 46),
}
COUNTS = {  # centres of so many things
    2: ((19, 32), (45, 32)),
    3: ((32, 18), (18, 44), (46, 44)),
    4: tuple(CORNERS.values()),
    5: ((14, 14), (50, 14), (32, 32), (14, 50), (50, 50)),
}
WORDS = (
    *("GO", "UP", "NO", "HI", "ON", "IT", "OK", "BE"),
    *("CAT", "DOG", "SUN", "CAR", "TEA", "HAT", "BOX", "MAP", "CUP", "FOX", "SKY", "BUS", "KEY", "ICE", "RED", "LEG"),
    *("STAR", "MOON", "TREE", "LAMP", "FISH", "BIRD", "CAKE", "GOLD", "DUCK", "SHIP", "MILK", "YARD"),
)
LETTER = {2: (11, 23), 3: (9, 19), 4: (7.5, 15)}  # radius and pitch of so many, in pixels

Rule = Callable[[list[Detection], Scene], bool]


@dataclass(frozen=True)
class Asked:
    """A prompt, a scene that is right for it, and the rule that tells which others are."""

    prompt: str
    scene: Scene
    rule: Rule
    read: Callable[[object], tuple[str, list[Detection]]] = detect

    def right(self, picture) -> bool:
        """Whether a picture (PIL, or an array [64, 64, 3] in 0..255) shows what was asked for, and no more."""
        background, found = self.read(picture)
        return background == self.scene.background and self.rule(found, self.scene)


# Rules


def same_shapes(found: list[Detection], scene: Scene) -> bool:
    return sorted(thing.shape for thing in found) == sorted(thing.shape for thing in scene.things)


def same_names(found: list[Detection], scene: Scene) -> bool:
    return sorted(thing.name for thing in found) == sorted(thing.name for thing in scene.things)


def _by_name(found: list[Detection], scene: Scene) -> list[Detection]:
    """In the scene's order."""
    return [next(thing for thing in found if thing.name == wanted.name) for wanted in scene.things]


def same_sizes(found: list[Detection], scene: Scene) -> bool:
    if not same_names(found, scene):
        return False
    (first, second), (one, other) = map(radius, _by_name(found, scene)), scene.things
    return first > 1.3 * second if one.radius > other.radius else second > 1.3 * first


def related(relation: str) -> Rule:
    def rule(found: list[Detection], scene: Scene) -> bool:
        if not same_names(found, scene):
            return False
        first, second = _by_name(found, scene)
        dx, dy = first.x - second.x, first.y - second.y
        if relation == INSIDE:
            return math.hypot(dx, dy) < radius(first) / 2 and radius(second) < 0.7 * radius(first)
        along, across = (dx, dy) if BESIDE[relation][0] else (dy, dx)
        return along * sum(BESIDE[relation]) > max(8, abs(across))

    return rule


def same_word(found: list[Detection], scene: Scene) -> bool:
    return [letter.name for letter in found] == [letter.name for letter in scene.things]


# By chance


def a_pair(rng: random.Random, first: tuple, second: tuple) -> tuple[Thing, Thing]:
    """Two of different shape and colour, each from its (radius, x, y)."""
    shapes, colors = rng.sample(list(OUTLINES), 2), rng.sample(list(COLORS), 2)
    return tuple(Thing(*made, *where) for made, where in zip(zip(shapes, colors), (first, second)))


def _beside(rng: random.Random, radii: tuple[float, float], direction: tuple[int, int]) -> Scene:
    """Two, the first of them in that direction of the second."""
    (dx, dy), jitters = direction, [(jitter(rng), jitter(rng)) for _ in radii]
    places = [(32 + 14 * sign * dx + jx, 32 + 14 * sign * dy + jy) for sign, (jx, jy) in zip((1, -1), jitters)]
    made = [(radius + jitter(rng, 0.5), *place) for radius, place in zip(radii, places)]
    return Scene(a_pair(rng, *made), **a_background(rng))


def single_object(rng: random.Random) -> Asked:
    scene = single(rng)
    return Asked(f"{article(scene.things[0].shape)} on {setting(scene)}", scene, same_shapes)


def two_objects(rng: random.Random) -> Asked:
    scene = _beside(rng, (9, 9), rng.choice(list(BESIDE.values())))
    what = " and ".join(article(thing.shape) for thing in scene.things)
    return Asked(f"{what} on {setting(scene)}", scene, same_shapes)


def counting(rng: random.Random) -> Asked:
    count = rng.choice(list(COUNTS))
    shape, color, dx, dy = rng.choice(list(OUTLINES)), rng.choice(list(COLORS)), jitter(rng), jitter(rng)
    size = (7.5 if count == 5 else 9) + jitter(rng, 0.5)
    scene = Scene(tuple(Thing(shape, color, size, x + dx, y + dy) for x, y in COUNTS[count]), **a_background(rng))
    what = f"{NUMBERS[count]} small {plural(scene.things[0].name)}"
    return Asked(f"{what} on {setting(scene)}", scene, same_names)


def colors(rng: random.Random) -> Asked:
    scene = single(rng)
    return Asked(f"{article(scene.things[0].name)} on {setting(scene)}", scene, same_names)


def a_relation(rng: random.Random) -> tuple[Thing, str, Thing, Scene]:
    """A thing, how it stands to another, that other, and the scene."""
    relation = rng.choice(RELATIONS)
    if relation != INSIDE:
        scene = _beside(rng, (9, 9), BESIDE[relation])
        return scene.things[0], relation, scene.things[1], scene
    x, y = 32 + jitter(rng, 4), 32 + jitter(rng, 4)
    inner, outer = a_pair(rng, (7 + jitter(rng, 0.5), x, y), (18 + jitter(rng, 0.5), x, y))
    if outer.shape not in ROOMY:
        outer = replace(outer, shape=another(rng, ROOMY, inner.shape))
    return inner, relation, outer, Scene((outer, inner), **a_background(rng))  # the inner one is drawn last


def position(rng: random.Random) -> Asked:
    thing, relation, other, scene = a_relation(rng)
    what = f"{article(thing.name)} {relation} {article(other.name)}"
    return Asked(f"{what} on {setting(scene)}", scene, related(relation))


def attribute_binding(rng: random.Random) -> Asked:
    """Two, each with a colour and a size of its own."""
    sizes = rng.choice((("small", "large"), ("large", "small")))
    radii = tuple({"small": 7.5, "large": 13}[size] for size in sizes)
    scene = _beside(rng, radii, rng.choice(list(BESIDE.values())))
    things = tuple(replace(thing, size=size) for thing, size in zip(scene.things, sizes))
    what = " and ".join(article(thing.sized) for thing in things)
    return Asked(f"{what} on {setting(scene)}", replace(scene, things=things), same_sizes)


def four_objects(rng: random.Random) -> Asked:
    shapes, colors = rng.sample(list(OUTLINES), 4), rng.sample(list(COLORS), 4)
    things = tuple(
        Thing(shape, color, 9 + jitter(rng, 0.5), x + jitter(rng, 1), y + jitter(rng, 1), place=place)
        for shape, color, (place, (x, y)) in zip(shapes, colors, CORNERS.items())
    )
    scene = Scene(things, **a_background(rng))
    named = [f"{article(thing.name)} {thing.place}" for thing in things]
    what = f"{', '.join(named[:-1])} and {named[-1]}"
    return Asked(f"{what} on {setting(scene)}", scene, same_things)


def letters(rng: random.Random) -> Asked:
    word, color = rng.choice(WORDS), rng.choice(list(COLORS))
    (size, pitch), x, y = LETTER[len(word)], 32 + jitter(rng, 1), 32 + jitter(rng, 6)
    start = x - pitch * (len(word) - 1) / 2
    things = tuple(Thing(letter, color, size, start + pitch * i, y) for i, letter in enumerate(word))
    scene = Scene(things, **a_background(rng))
    return Asked(f"the word {spelled(scene)} in {color} on {setting(scene)}", scene, same_word, read_letters)


def shows(scene: Scene, picture) -> bool:
    """Whether a picture (PIL, or an array [64, 64, 3] in 0..255) shows just this scene, a word or things."""
    if scene.things[0].shape in LETTERS:
        background, found = read_letters(picture)
        return background == scene.background and same_word(found, scene)
    background, found = detect(picture)
    return background == scene.background and same_things(found, scene)


def spelled(scene: Scene) -> str:
    """The letters apart, so that each is a token of its own."""
    return " ".join(thing.shape for thing in scene.things)


PICTURES: dict[str, Callable[[random.Random], Asked]] = {
    "single object": single_object,
    "two objects": two_objects,
    "counting": counting,
    "colors": colors,
    "position": position,
    "attribute binding": attribute_binding,
    "four objects": four_objects,
    "letters": letters,
}
