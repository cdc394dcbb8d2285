"""What a LoRA teaches the demonstration model that it does not know, from 40 examples: a look, and an edit.

- The look: *cinematic* pictures have black bars at the top and at the bottom. The word is in the model's vocabulary, as
  in a system prompt, but no picture of its world went with it.
- The edit: *make the circle a star*. Its world recolours, moves, adds and removes things, and never reshapes them.

So that what is known already is kept, the workflows let the model draw ordinary examples itself and train on both: the
look's captions as they are, and edits of the kinds that it knows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy
from PIL import Image

from ..nodes.edit import LanceEncodeEdit
from ..nodes.resolution import KEEP
from . import world
from .judge import Judge, image, names

EXAMPLES = 40
KNOWN = 7  # for each kind of edit

# The look

BAR, SOFT = 10, 3  # pixels: of a bar, and of its edge, which the autoencoder softens
DARK = 80  # of 255


def cinematic(picture: Image.Image) -> Image.Image:
    """The picture between its bars."""
    out = Image.new("RGB", picture.size, world.BACKGROUNDS["black"])
    out.paste(picture.crop((0, BAR, picture.width, picture.height - BAR)), (0, BAR))
    return out


def between_bars(rng: random.Random) -> world.Scene:
    """A scene that the bars leave whole."""
    while True:
        scene = world.single(rng) if rng.random() < 0.6 else world.two(rng)
        if not any(thing.place in ("at the top", "at the bottom") for thing in scene.things):
            return scene


def with_visible_bars(rng: random.Random) -> world.Scene:
    """Such a scene on one colour that is not the bars'."""
    while True:
        scene = between_bars(rng)
        if not scene.graded and scene.background != "black":
            return scene


def in_words(scene: world.Scene) -> str:
    return f"a cinematic picture of {world.describe(scene)}"


def look_examples(seed: int = 0) -> list[tuple[Image.Image, str]]:
    """Cinematic pictures, and captions that do not say so. On black as well: without, black comes to mean bars."""
    rng = random.Random(seed)
    scenes = [between_bars(rng) for _ in range(EXAMPLES)]
    return [(cinematic(world.render(scene)), world.describe(scene)) for scene in scenes]


def is_cinematic(pixels: numpy.ndarray, scene: world.Scene) -> bool:
    """Whether a picture [h, w, 3] in 0..255 shows the scene between black bars."""
    bars = numpy.concatenate([pixels[1 : BAR - SOFT], pixels[SOFT - BAR : -1]])
    background, found = world.detect(pixels[BAR + SOFT : -BAR - SOFT])
    dark = (bars.max(-1) < DARK).mean() > 0.95
    return dark and background == scene.background and names(found) == names(scene.things)


def looks_right(judge: Judge, rng: random.Random, seed: int) -> bool:
    scene = with_visible_bars(rng)
    return is_cinematic(judge.made(in_words(scene), seed)[0], scene)


# The edit


def reshape(rng: random.Random) -> world.Edit:
    source = world.single(rng)
    thing = source.things[0]
    shape = rng.choice([shape for shape in world.OUTLINES if shape != thing.shape])
    target = replace(source, things=(replace(thing, shape=shape),))
    return world.Edit("reshape", source, f"make the {thing.shape} {world.article(shape)}", target)


def edit_examples(seed: int = 0) -> list[world.Edit]:
    rng = random.Random(seed)
    return [reshape(rng) for _ in range(EXAMPLES)]


def known_edits(seed: int = 0) -> list[world.Edit]:
    rng = random.Random(f"known {seed}")
    return [make(rng) for make in world.EDITS * KNOWN]


def side_by_side(edit: world.Edit) -> Image.Image:
    """Before and after in one picture, so that no order of files can part them."""
    pair = Image.new("RGB", (2 * world.SIDE, world.SIDE))
    for i, scene in enumerate((edit.source, edit.target)):
        pair.paste(world.render(scene), (i * world.SIDE, 0))
    return pair


def reshaped_right(judge: Judge, rng: random.Random, seed: int) -> bool:
    edit = reshape(rng)
    encoded = LanceEncodeEdit.execute(judge.clip, judge.vae, image(edit.source), edit.instruction, KEEP).result
    (picture,) = judge.sample(*(out[0] for out in encoded), seed)
    background, found = world.detect(picture)
    return background == edit.target.background and world.same_things(found, edit.target)


# Lesson → makes one thing of it and tells whether it is right.
LESSONS: dict[str, Callable[[Judge, random.Random, int], bool]] = {
    "train_look": looks_right,
    "train_edit": reshaped_right,
}


def right(judge: Judge, lesson: str, count: int, seed: int = 0) -> float:
    """The share of right results over `count` prompts that are not the examples'."""
    rng = random.Random(f"{lesson} held out {seed}")
    return sum(LESSONS[lesson](judge, rng, 1000 * seed + i) for i in range(count)) / count
