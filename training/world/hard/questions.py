"""Questions about all that is hard to make, and how answers are judged."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..scenes import Scene
from ..words import NUMBERS, article, plural
from .clips import Movers, two_movers
from .scenes import RELATIONS, a_relation, attribute_binding, counting, four_objects, letters, spelled


@dataclass(frozen=True)
class Question:
    """About one picture, or the frames of `clip`."""

    shown: tuple[Scene, ...]
    asked: str
    answer: str
    clip: Movers | None = None

    def right(self, answer: str) -> bool:
        return answer.strip().rstrip(".").lower() == self.answer.lower()


def _relation(rng: random.Random) -> Question:
    thing, relation, other, scene = a_relation(rng)
    if rng.random() < 0.5:
        return Question((scene,), f"What is {relation} the {other.name}?", article(thing.name))
    said = relation if rng.random() < 0.5 else rng.choice([r for r in RELATIONS if r != relation])
    return Question((scene,), f"Is the {thing.shape} {said} the {other.shape}?", "yes" if said == relation else "no")


def _count(rng: random.Random) -> Question:
    scene = counting(rng).scene
    return Question((scene,), f"How many {plural(scene.things[0].shape)} are there?", NUMBERS[len(scene.things)])


def _size(rng: random.Random) -> Question:
    scene = attribute_binding(rng).scene
    thing = rng.choice(scene.things)
    asked, answer = rng.choice(
        [
            (f"What size is the {thing.shape}?", thing.size),
            (f"What color is the {thing.size} object?", thing.color),
            (f"What shape is the {thing.size} object?", thing.shape),
        ]
    )
    return Question((scene,), asked, answer)


def _corner(rng: random.Random) -> Question:
    scene = four_objects(rng).scene
    thing = rng.choice(scene.things)
    asked, answer = rng.choice(
        [(f"What is {thing.place}?", article(thing.name)), (f"Where is the {thing.name}?", thing.place)]
    )
    return Question((scene,), asked, answer)


def _word(rng: random.Random) -> Question:
    scene = letters(rng).scene
    asked, answer = rng.choice(
        [("What is the word?", spelled(scene)), ("What color is the word?", scene.things[0].color)]
    )
    return Question((scene,), asked, answer)


def _motion(rng: random.Random) -> Question:
    clip = two_movers(rng)
    thing, action = rng.choice(list(zip(clip.frames[0].things, clip.actions)))
    return Question(clip.frames, f"What does the {thing.shape} do?", f"It {action}", clip)


QUESTIONS: tuple[Callable[[random.Random], Question], ...] = (_relation, _count, _size, _corner, _word, _motion)


def a_question(rng: random.Random) -> Question:
    return rng.choice(QUESTIONS)(rng)
