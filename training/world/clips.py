"""Clips of one thing that moves, turns, grows or shrinks, and edits of and questions about them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from .scenes import BACKGROUNDS, COLORS, OUTLINES, Scene, Thing, a_background, a_thing, another, jitter
from .words import article, setting

FRAMES = 9
MOVES = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*MOVES, "turns", "grows", "shrinks")
START = {"right": "on the left", "left": "on the right", "up": "at the bottom", "down": "at the top"}
TRAVEL = 12  # pixels to each side of the middle


@dataclass(frozen=True)
class Clip:
    motion: str  # one of MOTIONS
    frames: tuple[Scene, ...]

    @property
    def first(self) -> Scene:
        return self.frames[0]

    @property
    def action(self) -> str:
        return f"moves {self.motion}" if self.motion in MOVES else self.motion

    def describe(self) -> str:
        return f"{article(self.first.things[0].name)} {self.action} on {setting(self.first)}"


def a_clip(rng: random.Random, motion: str | None = None, thing: Thing | None = None) -> Clip:
    motion = motion or rng.choice((*MOVES, *MOTIONS))
    shapes = [shape for shape in OUTLINES if motion != "turns" or shape != "circle"]
    if thing is None:
        thing = a_thing(rng, "in the middle", "", shape=rng.choice(shapes))
    thing = replace(thing, x=32 + jitter(rng), y=32 + jitter(rng), angle=0.0)
    background, frames = a_background(rng), []
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
        frames.append(Scene((now,), **background))
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
