"""Scenes of coloured shapes: what they consist of, how they are drawn, and how they come about by chance."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import numpy
from PIL import Image, ImageDraw

from .letters import LETTERS

SIDE = 64  # pixels
SUPERSAMPLING = 4

COLORS = {
    "red": (222, 38, 38),
    "orange": (250, 140, 20),
    "yellow": (245, 215, 30),
    "green": (40, 160, 60),
    "cyan": (40, 195, 205),
    "blue": (40, 75, 215),
    "purple": (130, 45, 165),
    "pink": (245, 105, 175),
}
BACKGROUNDS = {
    "white": (246, 246, 246),
    "gray": (150, 150, 150),
    "black": (22, 22, 22),
    "blue": (185, 212, 250),
    "green": (196, 236, 196),
    "pink": (252, 218, 232),
}
SIZES = {"small": 10, "": 13, "large": 16}  # radius in pixels
POSITIONS = {  # of things, in pixels, by the words for their place
    "in the middle": (32, 32),
    "on the left": (19, 32),
    "on the right": (45, 32),
    "at the top": (32, 19),
    "at the bottom": (32, 45),
}
OPPOSITE = {"on the left": "on the right", "at the top": "at the bottom"}


def _star(points: int, outer: float, inner: float) -> list[tuple[float, float]]:
    radii = (outer, inner)
    angles = [math.pi * i / points - math.pi / 2 for i in range(2 * points)]
    return [(radii[i % 2] * math.cos(a), radii[i % 2] * math.sin(a)) for i, a in enumerate(angles)]


def _heart() -> list[tuple[float, float]]:
    steps = [2 * math.pi * i / 40 for i in range(40)]
    curve = [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in steps
    ]
    return [(x, y - 0.05) for x, y in curve]


_ARM = 0.34
OUTLINES = {
    "circle": [(math.cos(2 * math.pi * i / 48), math.sin(2 * math.pi * i / 48)) for i in range(48)],
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -1.0), (0.98, 0.8), (-0.98, 0.8)],
    "star": _star(5, 1.12, 0.47),
    "heart": _heart(),
    "cross": [
        *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
        *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
    ],
}


@dataclass(frozen=True)
class Thing:
    """An object: its centre and radius in pixels, its angle in degrees, and the words for size and place."""

    shape: str  # of OUTLINES, or a letter
    color: str
    radius: float
    x: float
    y: float
    angle: float = 0.0
    size: str = ""
    place: str = ""

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def sized(self) -> str:
        return f"{self.size} {self.name}".strip()


@dataclass(frozen=True)
class Scene:
    """Things on a background, `graded` if it changes from top to bottom; a square of `side` pixels."""

    things: tuple[Thing, ...]
    background: str
    graded: bool = False
    side: int = SIDE


def render(scene: Scene) -> Image.Image:
    scale = SUPERSAMPLING
    size = scene.side * scale
    picture = Image.new("RGB", (size, size), BACKGROUNDS[scene.background])
    if scene.graded:  # darker, or on black lighter, towards the bottom
        top = numpy.array(BACKGROUNDS[scene.background], float)
        bottom = top * 0.72 if top.mean() > 60 else top + 70
        rows = numpy.linspace(top, bottom, size).round().astype(numpy.uint8)
        picture = Image.fromarray(numpy.repeat(rows[:, None], size, axis=1))
    draw = ImageDraw.Draw(picture)
    for thing in scene.things:
        cos, sin = math.cos(math.radians(thing.angle)), math.sin(math.radians(thing.angle))
        for outline in LETTERS.get(thing.shape) or [OUTLINES[thing.shape]]:
            points = [
                (
                    (thing.x + thing.radius * (x * cos - y * sin)) * scale,
                    (thing.y + thing.radius * (x * sin + y * cos)) * scale,
                )
                for x, y in outline
            ]
            draw.polygon(points, fill=COLORS[thing.color])
    return picture.reduce(scale)


# By chance


def jitter(rng: random.Random, amount: float = 2.0) -> float:
    return rng.uniform(-amount, amount)


def a_thing(
    rng: random.Random, place: str | None = None, size: str | None = None, loose: float = 2.0, **given
) -> Thing:
    """`loose` is how far from its place it may be, in pixels."""
    place = rng.choice(list(POSITIONS)) if place is None else place
    size = rng.choice(list(SIZES)) if size is None else size
    x, y = POSITIONS[place]
    loose = 1.0 if size == "large" else loose
    shape = given.get("shape") or rng.choice(list(OUTLINES))
    color = given.get("color") or rng.choice(list(COLORS))
    return Thing(
        shape, color, SIZES[size] + jitter(rng, 0.8), x + jitter(rng, loose), y + jitter(rng, loose), 0.0, size, place
    )


def another(rng: random.Random, choices, but: str) -> str:
    return rng.choice([choice for choice in choices if choice != but])


def a_background(rng: random.Random) -> dict:
    return {"background": rng.choice(list(BACKGROUNDS)), "graded": rng.random() < 0.3}


def single(rng: random.Random, **given) -> Scene:
    return Scene((a_thing(rng, **given),), **a_background(rng))


def two(rng: random.Random) -> Scene:
    """Two small objects of different shape and colour, on the left and right or at the top and bottom."""
    place = rng.choice(list(OPPOSITE))
    first = a_thing(rng, place, "small", loose=1.0)
    second = a_thing(
        rng,
        OPPOSITE[place],
        "small",
        loose=1.0,
        shape=another(rng, OUTLINES, first.shape),
        color=another(rng, COLORS, first.color),
    )
    return Scene((first, second), **a_background(rng))


def several(rng: random.Random) -> Scene:
    """Two of the same side by side, or three in a triangle."""
    count = rng.choice([2, 3])
    first = a_thing(rng, "in the middle", "small")
    dx, dy = first.x - 32, first.y - 32
    places = ((19, 32), (45, 32)) if count == 2 else ((32, 18), (18, 44), (46, 44))
    things = tuple(replace(first, x=x + dx, y=y + dy) for x, y in places)
    return Scene(things, **a_background(rng))


def a_scene(rng: random.Random) -> Scene:
    kind = rng.random()
    return single(rng) if kind < 0.6 else two(rng) if kind < 0.85 else several(rng)
