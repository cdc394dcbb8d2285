"""What is hard in the world: more things, relations, counts, letters, two changes and two motions at once."""

from .clips import Movers, two_movers
from .edits import edited, two_steps
from .questions import QUESTIONS, Question, a_question
from .recognition import detect, detect_motions, read_letters
from .scenes import PICTURES, WORDS, Asked, shows

__all__ = [
    "PICTURES",
    "QUESTIONS",
    "WORDS",
    "Asked",
    "Movers",
    "Question",
    "a_question",
    "detect",
    "detect_motions",
    "edited",
    "read_letters",
    "shows",
    "two_movers",
    "two_steps",
]
