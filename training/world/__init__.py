"""A world of coloured shapes with exact ground truth, which the demonstration model learns and is judged by."""

from .scenes import *  # noqa: F403
