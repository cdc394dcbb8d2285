"""A world of coloured shapes with exact ground truth: pictures, clips, edits, and plain English that describes them.

The demonstration model learns it and is judged by it; `hard` is what is hard in it.
"""

from . import hard
from .clips import FRAMES, MOTIONS, Clip, a_clip, clip_edit, clip_question
from .edits import EDITS, Edit, a_subject, an_edit
from .recognition import Detection, detect, detect_motion, same_things
from .scenes import (
    BACKGROUNDS,
    COLORS,
    OUTLINES,
    POSITIONS,
    SIDE,
    SIZES,
    Scene,
    Thing,
    a_background,
    a_scene,
    render,
    several,
    single,
    two,
)
from .words import article, describe, question, sentence, setting

__all__ = [
    "BACKGROUNDS",
    "POSITIONS",
    "COLORS",
    "EDITS",
    "FRAMES",
    "MOTIONS",
    "OUTLINES",
    "SIDE",
    "SIZES",
    "Clip",
    "Detection",
    "Edit",
    "Scene",
    "Thing",
    "a_background",
    "a_clip",
    "a_scene",
    "a_subject",
    "an_edit",
    "article",
    "clip_edit",
    "clip_question",
    "describe",
    "detect",
    "detect_motion",
    "hard",
    "question",
    "render",
    "same_things",
    "sentence",
    "setting",
    "several",
    "single",
    "two",
]
