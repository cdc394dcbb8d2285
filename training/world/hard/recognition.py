"""Things that touch or lie in one another, words and two motions, read back from pixels alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy
from PIL import Image
from scipy import ndimage

from ..letters import LETTERS
from ..recognition import BLURS, Detection, background_of, foreground, motion_between, nearest, read_pixels, shape_of
from ..scenes import BACKGROUNDS, COLORS, OUTLINES, Scene, Thing, render

SMALLEST = 30  # pixels of a thing
FAINTEST = 12  # pixels of a letter
PALETTE = numpy.array(list(COLORS.values()), float)


def _nearest_color(pixels: numpy.ndarray, rows: numpy.ndarray, colors: list[int]) -> numpy.ndarray:
    """Of each pixel [h, w] the nearest of these colours of the palette, or -1 for the background."""
    off = [((pixels - rows[:, None]) ** 2).sum(-1), *(((pixels - PALETTE[c]) ** 2).sum(-1) for c in colors)]
    return numpy.array([-1, *colors])[numpy.argmin(off, axis=0)]


def _pieces(mask: numpy.ndarray) -> Iterator[numpy.ndarray]:
    labels, count = ndimage.label(mask)
    yield from (labels == label for label in range(1, count + 1))


def _masks(pixels: numpy.ndarray, rows: numpy.ndarray) -> Iterator[tuple[str, numpy.ndarray]]:
    """Colour and mask of each thing.

    Where two colours meet, what lies between them may look like a third; only colours that fill a spot of some width
    count, and the pixels between them are divided anew.
    """
    colors, names = _nearest_color(pixels, rows, list(range(len(PALETTE)))), list(COLORS)
    cores = [ndimage.binary_erosion(colors == color, iterations=2) for color in range(len(PALETTE))]
    for region in _pieces(colors >= 0):
        here = [color for color, core in enumerate(cores) if (core & region).any()]
        divided = _nearest_color(pixels, rows, here)
        for color in here:
            for mask in _pieces(region & (divided == color)):
                if (mask & cores[color]).any() and mask.sum() >= SMALLEST:
                    yield names[color], mask


def detect(picture) -> tuple[str, list[Detection]]:
    """Background and things of a picture (PIL, or an array [64, 64, 3] in 0..255), from left to right."""
    pixels, rows = read_pixels(picture)
    found = []
    for color, mask in _masks(pixels, rows):
        filled = ndimage.binary_fill_holes(mask)  # what lies in it hides a part
        shape, fit = shape_of(filled)
        y, x = map(float, ndimage.center_of_mass(filled))
        found.append(Detection(shape, color, x, y, int(filled.sum()), fit))
    return background_of(pixels), sorted(found, key=lambda thing: thing.x)


def _letter_box(ink: numpy.ndarray) -> numpy.ndarray:
    """How much ink there is, 0 to 1, in a letter's bounding box, brought to 24 × 24 with what is narrow left narrow."""
    mask = ink > 0.5
    rows, columns = numpy.where(mask.any(1))[0], numpy.where(mask.any(0))[0]
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    missing = max(0, box.shape[0] - box.shape[1])
    box = numpy.pad(box, ((0, 0), (missing // 2, missing - missing // 2)))
    picture = Image.fromarray(box.astype(numpy.float32))
    return numpy.asarray(picture.resize((24, 24), Image.Resampling.BILINEAR))


@cache
def _letter_templates() -> list[tuple[str, numpy.ndarray]]:
    out, white, red = [], BACKGROUNDS["white"][1], COLORS["red"][1]
    for letter in LETTERS:
        scene = Scene((Thing(letter, "red", 20, 32, 32),), "white")
        green = numpy.asarray(render(scene)).astype(float)[..., 1]
        for blur in BLURS:
            out.append((letter, _letter_box((white - ndimage.gaussian_filter(green, blur)) / (white - red))))
    return out


def read_letters(picture) -> tuple[str, list[Detection]]:
    """Background and letters of a picture, from left to right."""
    pixels, rows = read_pixels(picture)
    off = numpy.abs(pixels - rows[:, None]).max(-1)
    found = []
    for mask in _pieces(foreground(pixels, rows)):
        area = int(mask.sum())
        if area < FAINTEST:
            continue
        full = numpy.percentile(off[mask], 80)
        color = nearest(numpy.median(pixels[mask & (off >= full)], axis=0), COLORS)  # a stroke is nearly all edge
        ink = (off / full).clip(0, 1) * ndimage.binary_dilation(mask)
        box = _letter_box(ink)
        letter, fit = max(
            ((letter, float(numpy.corrcoef(box.ravel(), t.ravel())[0, 1])) for letter, t in _letter_templates()),
            key=lambda overlap: overlap[1],
        )
        y, x = map(float, ndimage.center_of_mass(mask))
        found.append(Detection(letter, color, x, y, area, fit))
    return background_of(pixels), sorted(found, key=lambda thing: thing.x)


def radius(found: Detection) -> float:
    """In pixels, by the area that its shape has."""
    outline = OUTLINES[found.shape]
    unit = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(outline, outline[1:] + outline[:1])) / 2
    return math.sqrt(found.area / abs(unit))


def detect_motions(frames) -> dict[str, str]:
    """What each thing of a clip does, by its name; {} unless the same things are seen at both ends."""
    first, last = ({thing.name: thing for thing in detect(frame)[1]} for frame in (frames[0], frames[-1]))
    if first.keys() != last.keys():
        return {}
    return {name: motion_between(first[name], last[name]) for name in first}
