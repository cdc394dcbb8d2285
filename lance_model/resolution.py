"""Resolutions that Lance works in: rules by which pictures and clips of any size are brought to sizes that it knows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .media import STRIDE, VISION_STRIDE, Fit

RATIOS = (21 / 9, 16 / 9, 4 / 3, 1.0, 3 / 4, 9 / 16)
VISION_SCALE = 7 / 8  # of the VAE's size, as in the image presets


def buckets(side: int) -> list[tuple[int, int]]:
    """Sizes (width, height) of about side² pixels, one for each ratio, on the latent grid."""
    sizes = []
    for ratio in RATIOS:
        width = round(side * math.sqrt(ratio) / STRIDE) * STRIDE
        height = round(side / math.sqrt(ratio) / STRIDE) * STRIDE
        candidates = [
            (width, round(width / ratio / STRIDE) * STRIDE),
            (round(height * ratio / STRIDE) * STRIDE, height),
        ]
        sizes.append(min(candidates, key=lambda s: (abs(s[0] / s[1] - ratio), abs(s[0] * s[1] - side * side))))
    return sizes


def bucket(width: int, height: int, side: int) -> tuple[int, int]:
    """The bucket whose ratio is nearest the picture's."""
    return min(buckets(side), key=lambda size: abs(size[0] / size[1] - width / height))


@dataclass(frozen=True)
class Buckets:
    """The nearest of six aspect ratios; `side` and `vision_side` are the square roots of the areas, for the VAE and for
    the vision encoder."""

    side: int
    vision_side: int

    def fit(self, width: int, height: int) -> Fit:
        return Fit.into(width, height, *(bucket(width, height, side) for side in (self.side, self.vision_side)))


@dataclass(frozen=True)
class Square:
    """A square, whatever the picture's ratio."""

    side: int
    vision_side: int

    def fit(self, width: int, height: int) -> Fit:
        return Fit.into(width, height, (self.side, self.side), (self.vision_side, self.vision_side))


@dataclass(frozen=True)
class OwnSize:
    """The picture's own size, cut to the latent grid."""

    def fit(self, width: int, height: int) -> Fit:
        size = tuple(max(STRIDE, length // STRIDE * STRIDE) for length in (width, height))
        cut = (min(size[0], width), min(size[1], height))
        left, top = (width - cut[0]) // 2, (height - cut[1]) // 2
        box = (left, top, left + cut[0], top + cut[1])
        return Fit(box, size, box, tuple(max(1, round(n * VISION_SCALE / VISION_STRIDE)) * VISION_STRIDE for n in size))


# What Lance was trained in, by the reference's names.
PRESETS = {
    "image 768": Buckets(768, 672),
    "image 512": Buckets(512, 448),
    "image 256": Buckets(256, 224),
    "video 480p": Buckets(640, 616),
    "video 360p": Buckets(480, 476),
    "video 192p": Buckets(256, 224),
}
IMAGE, VIDEO = PRESETS["image 768"], PRESETS["video 480p"]


@dataclass(frozen=True)
class Trained:
    """What a model is at its best in: rules for what it looks at and edits, (width, height) in pixels and the frames of
    what it makes from text."""

    image: Buckets | Square
    video: Buckets | Square
    picture: tuple[int, int]
    clip: tuple[int, int]
    frames: int


LANCE = Trained(IMAGE, VIDEO, (768, 768), (848, 480), 49)
