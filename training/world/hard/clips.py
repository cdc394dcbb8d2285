"""Clips of two things, each with a motion of its own."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from ..clips import FRAMES, MOVES, TRAVEL
from ..scenes import Scene, Thing, a_background, jitter
from ..words import article, setting
from .recognition import detect, detect_motions
from .scenes import a_pair

SIZES = {"grows": (6.5, 12.5), "shrinks": (12.5, 6.5)}  # radius in pixels, first and last
STILL = 9  # the radius of what moves


@dataclass(frozen=True)
class Movers:
    """`motions` are those of the things, in their order."""

    motions: tuple[str, str]
    frames: tuple[Scene, ...]

    @property
    def actions(self) -> tuple[str, ...]:
        return tuple(f"moves {motion}" if motion in MOVES else motion for motion in self.motions)

    def describe(self) -> str:
        first = self.frames[0]
        what = (f"{article(thing.name)} {action}" for thing, action in zip(first.things, self.actions))
        return f"{' and '.join(what)} on {setting(first)}"

    def right(self, frames) -> bool:
        """Whether frames (PIL, or arrays [64, 64, 3] in 0..255) show these two, and each does what it should."""
        background, found = detect(frames[0])
        wanted = {thing.name: motion for thing, motion in zip(self.frames[0].things, self.motions)}
        return len(found) == 2 and background == self.frames[0].background and detect_motions(frames) == wanted


def _at(thing: Thing, motion: str, t: float) -> Thing:
    """A thing at time t, 0 to 1."""
    if motion in SIZES:
        first, last = SIZES[motion]
        return replace(thing, radius=first + (last - first) * t)
    (dx, dy), way = MOVES[motion], TRAVEL * (2 * t - 1)
    return replace(thing, x=thing.x + dx * way, y=thing.y + dy * way)


def two_movers(rng: random.Random) -> Movers:
    """Side by side, where they move up and down, or one over the other, where they move left and right."""
    upright = rng.random() < 0.5
    moves = ("up", "down") if upright else ("left", "right")
    motions = tuple(rng.choice((*moves, *moves, *SIZES)) for _ in range(2))
    lanes = [(18 + jitter(rng, 1), 32 + jitter(rng)), (46 + jitter(rng, 1), 32 + jitter(rng))]
    things = a_pair(rng, *((STILL, *(lane if upright else lane[::-1])) for lane in lanes))
    background = a_background(rng)
    frames = tuple(
        Scene(tuple(_at(thing, motion, i / (FRAMES - 1)) for thing, motion in zip(things, motions)), **background)
        for i in range(FRAMES)
    )
    return Movers(motions, frames)
