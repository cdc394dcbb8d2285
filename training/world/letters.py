"""Capital letters as outlines, drawn like any shape: strokes in a box of two by 1.3 radii."""

from __future__ import annotations

import math

Outline = list[tuple[float, float]]

_WIDTH = 0.36  # of a stroke
_L, _M, _R = -0.5, 0.0, 0.5  # left, middle, right
_T, _B = -0.82, 0.82  # top, bottom
_BOWL = [(_L, _T), (0.25, _T), (_R, -0.6), (_R, -0.22), (0.25, _M), (_L, _M)]
_ROUND = [(0.15, _T), (-0.15, _T), (_L, -0.4), (_L, 0.4), (-0.15, _B), (0.15, _B)]

_STROKES: dict[str, list[Outline]] = {
    "A": [[(_L, _B), (_M, _T), (_R, _B)], [(-0.3, 0.3), (0.3, 0.3)]],
    "B": [[(_L, _T), (_L, _B)], _BOWL, [(_L, _M), (0.25, _M), (_R, 0.22), (_R, 0.6), (0.25, _B), (_L, _B)]],
    "C": [[(_R, -0.5), *_ROUND, (_R, 0.5)]],
    "D": [[(_L, _T), (_L, _B), (0.25, _B), (_R, 0.6), (_R, -0.6), (0.25, _T), (_L, _T)]],
    "E": [[(_R, _T), (_L, _T), (_L, _B), (_R, _B)], [(_L, _M), (0.3, _M)]],
    "F": [[(_R, _T), (_L, _T), (_L, _B)], [(_L, _M), (0.3, _M)]],
    "G": [[(_R, -0.5), *_ROUND, (_R, 0.5), (_R, 0.1), (0.1, 0.1)]],
    "H": [[(_L, _T), (_L, _B)], [(_R, _T), (_R, _B)], [(_L, _M), (_R, _M)]],
    "I": [[(_M, _T), (_M, _B)]],
    "K": [[(_L, _T), (_L, _B)], [(_R, _T), (-0.35, _M), (_R, _B)]],
    "L": [[(_L, _T), (_L, _B), (_R, _B)]],
    "M": [[(_L, _B), (_L, _T), (_M, 0.25), (_R, _T), (_R, _B)]],
    "N": [[(_L, _B), (_L, _T), (_R, _B), (_R, _T)]],
    "O": [[*_ROUND, (_R, 0.4), (_R, -0.4), (0.15, _T)]],
    "P": [[(_L, _T), (_L, _B)], _BOWL],
    "R": [[(_L, _T), (_L, _B)], _BOWL, [(-0.1, _M), (_R, _B)]],
    "S": [[(_R, -0.6), (0.25, _T), (-0.25, _T), (_L, -0.5), (_L, -0.2), (_R, 0.2), (_R, 0.5), (0.25, _B)]],
    "T": [[(_L, _T), (_R, _T)], [(_M, _T), (_M, _B)]],
    "U": [[(_L, _T), (_L, 0.5), (-0.25, _B), (0.25, _B), (_R, 0.5), (_R, _T)]],
    "X": [[(_L, _T), (_R, _B)], [(_R, _T), (_L, _B)]],
    "Y": [[(_L, _T), (_M, _M), (_R, _T)], [(_M, _M), (_M, _B)]],
}
_STROKES["S"][0] += [(-0.25, _B), (_L, 0.6)]


def _bar(start: tuple[float, float], end: tuple[float, float]) -> Outline:
    """A straight stroke, half its width longer at both ends, so that corners close."""
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0)
    dx, dy = (x1 - x0) / length * _WIDTH / 2, (y1 - y0) / length * _WIDTH / 2
    x0, y0, x1, y1 = x0 - dx, y0 - dy, x1 + dx, y1 + dy
    return [(x0 - dy, y0 + dx), (x0 + dy, y0 - dx), (x1 + dy, y1 - dx), (x1 - dy, y1 + dx)]


LETTERS = {
    letter: [_bar(start, end) for stroke in strokes for start, end in zip(stroke, stroke[1:])]
    for letter, strokes in _STROKES.items()
}
