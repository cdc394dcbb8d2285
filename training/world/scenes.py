"""A world of coloured shapes with exact ground truth: pictures, clips, edits, and plain English that describes them.

The demonstration model learns it and is judged by it: `look` reads a picture's objects and background back from its
pixels alone.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from functools import cache

import numpy
from PIL import Image, ImageDraw
from scipy import ndimage

SIDE = 64  # pixels
FRAMES = 9
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
PLACES = {
    "in the middle": (32, 32),
    "on the left": (19, 32),
    "on the right": (45, 32),
    "at the top": (32, 19),
    "at the bottom": (32, 45),
}
NUMBERS = ("zero", "one", "two", "three")
MOVES = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
START = {"right": "on the left", "left": "on the right", "up": "at the bottom", "down": "at the top"}
TRAVEL = 12  # pixels to each side of the middle


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

    shape: str
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
    things: tuple[Thing, ...]
    background: str
    graded: bool = False
    side: int = SIDE

    @property
    def setting(self) -> str:
        return f"{article(('graded ' if self.graded else '') + self.background)} background"


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


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
        points = [
            (
                (thing.x + thing.radius * (x * cos - y * sin)) * scale,
                (thing.y + thing.radius * (x * sin + y * cos)) * scale,
            )
            for x, y in OUTLINES[thing.shape]
        ]
        draw.polygon(points, fill=COLORS[thing.color])
    return picture.reduce(scale)


# Scenes


def jitter(rng: random.Random, amount: float = 2.0) -> float:
    return rng.uniform(-amount, amount)


def a_thing(
    rng: random.Random, place: str | None = None, size: str | None = None, loose: float = 2.0, **given
) -> Thing:
    """`loose` is how far from its place it may be, in pixels."""
    place = rng.choice(list(PLACES)) if place is None else place
    size = rng.choice(list(SIZES)) if size is None else size
    x, y = PLACES[place]
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


OPPOSITE = {"on the left": "on the right", "at the top": "at the bottom"}


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


# Descriptions


def describe(scene: Scene) -> str:
    """A caption, which is also a prompt."""
    things = scene.things
    if len({(t.shape, t.color) for t in things}) < len(things):
        what = f"{NUMBERS[len(things)]} {plural(things[0].sized)}"
    else:
        what = " and ".join(f"{article(t.sized)} {t.place}" for t in things)
    return f"{what} on {scene.setting}"


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


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


# Edits: a source, an instruction and what is asked for


@dataclass(frozen=True)
class Edit:
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
    place = another(rng, PLACES, thing.place)
    (x0, y0), (x, y) = PLACES[thing.place], PLACES[place]
    moved = replace(thing, place=place, x=thing.x - x0 + x, y=thing.y - y0 + y)
    where = {"in the middle": "to the middle", "on the left": "to the left", "on the right": "to the right"}
    where |= {"at the top": "to the top", "at the bottom": "to the bottom"}
    return Edit("move", source, f"move the {thing.shape} {where[place]}", replace(source, things=(moved,)))


def change_background(rng: random.Random) -> Edit:
    source = single(rng) if rng.random() < 0.6 else two(rng)
    background = another(rng, BACKGROUNDS, source.background)
    target = replace(source, background=background, graded=False)
    return Edit("background", source, f"change the background to {background}", target)


EDITS = (recolor, remove, add, move, change_background)


def an_edit(rng: random.Random) -> Edit:
    return rng.choice(EDITS)(rng)


# Subjects: what is in a reference appears in another scene


def a_subject(rng: random.Random) -> tuple[tuple[Scene, ...], str, Scene]:
    """References, prompt and the scene that is asked for."""
    if rng.random() < 0.75:
        reference = single(rng)
        thing = reference.things[0]
        place = rng.choice(list(PLACES))
        x, y = PLACES[place]
        setting = a_background(rng)
        target = Scene((replace(thing, x=x + jitter(rng), y=y + jitter(rng), place=place),), **setting)
        return (reference,), f"the object from the picture {place} on {target.setting}", target
    target = two(rng)
    places = [PLACES["in the middle"]] * 2
    references = tuple(
        Scene((replace(t, x=x + jitter(rng), y=y + jitter(rng)),), **a_background(rng))
        for t, (x, y) in zip(target.things, places)
    )
    first, second = target.things
    prompt = (
        f"the object from the first picture {first.place} and the object from the second picture {second.place} "
        f"on {target.setting}"
    )
    return references, prompt, target


# Clips


@dataclass(frozen=True)
class Clip:
    motion: str  # right, left, up, down, turns, grows, shrinks
    frames: tuple[Scene, ...]

    @property
    def first(self) -> Scene:
        return self.frames[0]

    @property
    def action(self) -> str:
        return f"moves {self.motion}" if self.motion in MOVES else self.motion

    def describe(self) -> str:
        return f"{article(self.first.things[0].name)} {self.action} on {self.first.setting}"


MOTIONS = (*MOVES, "turns", "grows", "shrinks")


def a_clip(rng: random.Random, motion: str | None = None, thing: Thing | None = None) -> Clip:
    motion = motion or rng.choice((*MOVES, *MOTIONS))
    shapes = [shape for shape in OUTLINES if motion != "turns" or shape != "circle"]
    if thing is None:
        thing = a_thing(rng, "in the middle", "", shape=rng.choice(shapes))
    thing = replace(thing, x=32 + jitter(rng), y=32 + jitter(rng), angle=0.0)
    setting, frames = a_background(rng), []
    for i in range(FRAMES):
        t = i / (FRAMES - 1)
        if motion in MOVES:
            dx, dy = MOVES[motion]
            way = TRAVEL * (2 * t - 1)
            place = START[motion] if i == 0 else ""
            now = replace(thing, x=thing.x + dx * way, y=thing.y + dy * way, place=place)
        elif motion == "turns":
            now = replace(thing, angle=(45 if thing.shape in ("square", "cross") else 90) * t)
        else:
            share = t if motion == "grows" else 1 - t
            now = replace(thing, radius=8.5 + 9 * share)
        frames.append(Scene((now,), **setting))
    return Clip(motion, tuple(frames))


def clip_edit(rng: random.Random) -> tuple[Clip, str, Clip]:
    """A clip, an instruction and the clip that is asked for."""
    source = a_clip(rng)
    thing = source.first.things[0]
    if rng.random() < 0.5:
        color = another(rng, COLORS, thing.color)
        frames = tuple(replace(f, things=(replace(f.things[0], color=color),)) for f in source.frames)
        return source, f"make the {thing.shape} {color}", Clip(source.motion, frames)
    background = another(rng, BACKGROUNDS, source.first.background)
    frames = tuple(replace(f, background=background, graded=False) for f in source.frames)
    return source, f"change the background to {background}", Clip(source.motion, frames)


def clip_question(rng: random.Random, clip: Clip) -> tuple[str, str]:
    thing = clip.first.things[0]
    if rng.random() < 0.6:
        return f"What does the {thing.shape} do?", f"It {clip.action}"
    return rng.choice(
        [
            (f"What color is the {thing.shape}?", thing.color),
            (f"What shape is the {thing.color} object?", thing.shape),
        ]
    )


# Judging pixels


@dataclass(frozen=True)
class Seen:
    """An object read from pixels; `fit` is the overlap of its outline with the shape's, 0 to 1."""

    shape: str
    color: str
    x: float
    y: float
    area: float
    fit: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


def _nearest(color: numpy.ndarray, palette: dict) -> str:
    return min(palette, key=lambda name: float(((color - numpy.array(palette[name])) ** 2).sum()))


def _outline_box(mask: numpy.ndarray) -> numpy.ndarray:
    """A mask's bounding box, brought to 32 × 32."""
    rows, columns = numpy.where(mask.any(1))[0], numpy.where(mask.any(0))[0]
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    picture = Image.fromarray((box * 255).astype(numpy.uint8))
    return numpy.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)) > 127


STANDS_OUT = 55  # of 255: how far a colour is at least from that of its background; fainter is a shade of that
BLURS = (0, 2, 3.5)  # of the shapes to compare with, which are of radius 20: a soft star is a star


@cache
def _templates(turned: bool) -> list[tuple[str, numpy.ndarray]]:
    angles = range(0, 91, 15) if turned else (0,)
    out = []
    for shape in OUTLINES:
        for angle in angles:
            scene = Scene((Thing(shape, "red", 20, 32, 32, angle),), "white")
            green = numpy.asarray(render(scene)).astype(float)[..., 1]
            for blur in BLURS:
                out.append((shape, _outline_box(ndimage.gaussian_filter(green, blur) < 142)))
    return out


def _read(picture) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Pixels [h, w, 3] and the background's colour in each row [h, 3]."""
    pixels = numpy.asarray(picture).astype(float)
    rows = numpy.median(numpy.concatenate([pixels[:, :2], pixels[:, -2:]], axis=1), axis=1)
    return pixels, ndimage.median_filter(rows, size=(25, 1), mode="nearest")  # an object may touch the edge


def look(picture, turned: bool = False) -> tuple[str, list[Seen]]:
    """Background and objects of a picture (PIL, or an array [h, w, 3] in 0..255), from left to right."""
    pixels, rows = _read(picture)
    quarter, edge = pixels[: max(1, len(pixels) // 4)], 3
    border = [quarter[:edge], quarter[edge:, :edge], quarter[edge:, -edge:]]
    background = _nearest(numpy.median(numpy.concatenate([p.reshape(-1, 3) for p in border]), axis=0), BACKGROUNDS)
    labels, count = ndimage.label(_foreground(pixels, rows))
    seen = []
    for label in range(1, count + 1):
        mask = labels == label
        area = int(mask.sum())
        if area < 40 * (pixels.shape[0] / SIDE) ** 2:
            continue
        inner = ndimage.binary_erosion(mask, iterations=2)
        color = numpy.median(pixels[inner if inner.any() else mask], axis=0)
        box = _outline_box(mask)
        shape, fit = max(
            ((s, (box & t).sum() / (box | t).sum()) for s, t in _templates(turned)), key=lambda found: found[1]
        )
        y, x = ndimage.center_of_mass(mask)
        seen.append(Seen(shape, _nearest(color, COLORS), x, y, area, float(fit)))
    return background, sorted(seen, key=lambda thing: thing.x)


def same_things(seen: list[Seen], scene: Scene) -> bool:
    """Whether the picture has the scene's objects and no other: colours, shapes and rough places."""
    wanted = list(scene.things)
    if len(seen) != len(wanted):
        return False
    for thing in seen:
        match = next((w for w in wanted if w.name == thing.name and math.hypot(w.x - thing.x, w.y - thing.y) < 7), None)
        if match is None:
            return False
        wanted.remove(match)
    return True


def motion(frames) -> str:
    """What the one object of a clip does, or "" if nothing clear."""
    ends = [look(frame, turned=True)[1] for frame in (frames[0], frames[-1])]
    if any(len(end) != 1 for end in ends):
        return ""
    first, last = ends[0][0], ends[1][0]
    dx, dy = last.x - first.x, last.y - first.y
    if max(abs(dx), abs(dy)) > 8:
        return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
    if last.area > 1.8 * first.area:
        return "grows"
    if first.area > 1.8 * last.area:
        return "shrinks"
    masks = [_outline_box(_foreground(*_read(frame))) for frame in (frames[0], frames[-1])]
    overlap = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    return "turns" if overlap < 0.85 else ""


def _foreground(pixels: numpy.ndarray, rows: numpy.ndarray) -> numpy.ndarray:
    """Where objects are [h, w], their edges halfway to the background's colour."""
    distance = numpy.abs(pixels - rows[:, None]).max(-1)
    labels, count = ndimage.label(distance > 40)
    strong = ndimage.labeled_comprehension(
        distance, labels, range(count + 1), lambda x: numpy.percentile(x, 90), float, 0.0
    )
    return (labels > 0) & (strong[labels] > STANDS_OUT) & (distance > strong[labels] / 2)
