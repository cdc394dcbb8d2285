"""What a picture or a clip shows, read back from its pixels alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy
from PIL import Image
from scipy import ndimage

from .scenes import BACKGROUNDS, COLORS, OUTLINES, SIDE, Scene, Thing, render

STANDS_OUT = 55  # of 255: how far a colour is at least from that of its background; fainter is a shade of that
BLURS = (0, 2, 3.5)  # of the shapes to compare with, which are of radius 20: a soft star is a star


@dataclass(frozen=True)
class Detection:
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


def nearest(color: numpy.ndarray, palette: dict) -> str:
    return min(palette, key=lambda name: float(((color - numpy.array(palette[name])) ** 2).sum()))


def _outline_box(mask: numpy.ndarray) -> numpy.ndarray:
    """A mask's bounding box, brought to 32 × 32."""
    rows, columns = numpy.where(mask.any(1))[0], numpy.where(mask.any(0))[0]
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    picture = Image.fromarray((box * 255).astype(numpy.uint8))
    return numpy.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)) > 127


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


def read_pixels(picture) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Pixels [h, w, 3] and the background's colour in each row [h, 3]."""
    pixels = numpy.asarray(picture).astype(float)
    rows = numpy.median(numpy.concatenate([pixels[:, :2], pixels[:, -2:]], axis=1), axis=1)
    return pixels, ndimage.median_filter(rows, size=(25, 1), mode="nearest")  # an object may touch the edge


def foreground(pixels: numpy.ndarray, rows: numpy.ndarray) -> numpy.ndarray:
    """Where objects are [h, w], their edges halfway to the background's colour."""
    distance = numpy.abs(pixels - rows[:, None]).max(-1)
    labels, count = ndimage.label(distance > 40)
    strong = ndimage.labeled_comprehension(
        distance, labels, range(count + 1), lambda x: numpy.percentile(x, 90), float, 0.0
    )
    return (labels > 0) & (strong[labels] > STANDS_OUT) & (distance > strong[labels] / 2)


def background_of(pixels: numpy.ndarray) -> str:
    quarter, edge = pixels[: max(1, len(pixels) // 4)], 3
    border = [quarter[:edge], quarter[edge:, :edge], quarter[edge:, -edge:]]
    return nearest(numpy.median(numpy.concatenate([p.reshape(-1, 3) for p in border]), axis=0), BACKGROUNDS)


def shape_of(mask: numpy.ndarray, turned: bool = False) -> tuple[str, float]:
    """The shape whose outline a mask has, and how well it fits."""
    box = _outline_box(mask)
    overlaps = ((shape, float((box & t).sum() / (box | t).sum())) for shape, t in _templates(turned))
    return max(overlaps, key=lambda overlap: overlap[1])


def detect(picture, turned: bool = False) -> tuple[str, list[Detection]]:
    """Background and objects of a picture (PIL, or an array [h, w, 3] in 0..255), from left to right."""
    pixels, rows = read_pixels(picture)
    labels, count = ndimage.label(foreground(pixels, rows))
    found = []
    for label in range(1, count + 1):
        mask = labels == label
        area = int(mask.sum())
        if area < 40 * (pixels.shape[0] / SIDE) ** 2:
            continue
        inner = ndimage.binary_erosion(mask, iterations=2)
        color = numpy.median(pixels[inner if inner.any() else mask], axis=0)
        shape, fit = shape_of(mask, turned)
        y, x = map(float, ndimage.center_of_mass(mask))
        found.append(Detection(shape, nearest(color, COLORS), x, y, area, fit))
    return background_of(pixels), sorted(found, key=lambda thing: thing.x)


def same_things(found: list[Detection], scene: Scene) -> bool:
    """Whether the picture has the scene's objects and no other: colours, shapes and rough places."""
    wanted = list(scene.things)
    if len(found) != len(wanted):
        return False
    for thing in found:
        match = next((w for w in wanted if w.name == thing.name and math.hypot(w.x - thing.x, w.y - thing.y) < 7), None)
        if match is None:
            return False
        wanted.remove(match)
    return True


def motion_between(first: Detection, last: Detection) -> str:
    """How a thing has moved, or grown or shrunk, or "" if neither."""
    dx, dy = last.x - first.x, last.y - first.y
    if max(abs(dx), abs(dy)) > 8:
        return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
    if last.area > 1.8 * first.area:
        return "grows"
    return "shrinks" if first.area > 1.8 * last.area else ""


def detect_motion(frames) -> str:
    """What the one object of a clip does, or "" if nothing clear."""
    ends = [detect(frame, turned=True)[1] for frame in (frames[0], frames[-1])]
    if any(len(end) != 1 for end in ends):
        return ""
    first, last = ends[0][0], ends[1][0]
    if clear := motion_between(first, last):
        return clear
    masks = [_outline_box(foreground(*read_pixels(frame))) for frame in (frames[0], frames[-1])]
    overlap = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    return "turns" if overlap < 0.85 else ""
