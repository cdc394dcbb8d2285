"""Draws what the Comfy Registry shows of the plugin: `bash scripts/draw.sh registry`."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from ...training.world import Scene, Thing, render
from ..host.workflows import REPOSITORY
from .gallery import FADED, INK, PAPER

ICON, BANNER = 400, (1260, 540)  # the registry's limit, and its 21:9
TILE, GAP = 225, 30
TITLE, WORDS = "Lance", ("makes and edits", "pictures and clips,", "answers questions")


def tile(side: int, background: str, *things: tuple[str, str, float, float, float]) -> Image.Image:
    """Things as colour, shape, and middle and radius in shares of the side."""
    things = tuple(Thing(shape, color, r * side, x * side, y * side) for color, shape, x, y, r in things)
    return render(Scene(things, background, graded=True, side=side))


def icon() -> Image.Image:
    return tile(ICON, "pink", ("red", "circle", 0.4, 0.6, 0.28), ("blue", "star", 0.64, 0.36, 0.26))


def banner() -> Image.Image:
    picture = Image.new("RGB", BANNER, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((2 * GAP, 100), TITLE, font=ImageFont.load_default(110), fill=INK)
    for i, words in enumerate(WORDS):
        draw.text((2 * GAP, 260 + 50 * i), words, font=ImageFont.load_default(38), fill=FADED)
    circle, star = ("circle", 0.34, 0.55, 0.2), ("star", 0.7, 0.42, 0.2)
    tiles = [
        ("pink", ("red", *circle), ("blue", *star)),
        ("pink", ("green", *circle), ("blue", *star)),
        ("black", ("green", *circle), ("blue", *star)),
        *(("green", ("yellow", "heart", 0.25 + 0.25 * i, 0.5, 0.2)) for i in range(3)),
    ]
    left, top = BANNER[0] - 3 * (TILE + GAP), (BANNER[1] - 2 * TILE - GAP) // 2
    for i, (background, *things) in enumerate(tiles):
        corner = left + i % 3 * (TILE + GAP), top + i // 3 * (TILE + GAP)
        picture.paste(tile(TILE, background, *things), corner)
    return picture


def main() -> None:
    for name, picture in (("icon", icon()), ("banner", banner())):
        picture.save(REPOSITORY / "docs" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
