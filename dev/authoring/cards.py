"""A title over pictures: what the template browser shows of a workflow."""

from __future__ import annotations

from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

SIDE = 512
INSET = 208
RADIUS = 18
INK = (245, 243, 238)
FADED = (176, 180, 190)
NIGHT = (18, 24, 38)
DUSK = Image.frombytes("RGB", (2, 2), bytes((38, 70, 130, 190, 110, 90, 30, 50, 90, 90, 60, 110)))


def title_card(title: str, subtitle: str, pictures: list[Image.Image]) -> Image.Image:
    """A square card: the pictures as prints before their own colours, the titles below."""
    pictures = [picture.convert("RGB") for picture in pictures]
    card = _backdrop(pictures[0] if pictures else DUSK)
    step = min(INSET + 12, (SIDE - 48 - INSET) // max(1, len(pictures) - 1))
    left = (SIDE - INSET - step * (len(pictures) - 1)) // 2
    for i, picture in enumerate(pictures):
        _paste_print(card, picture, (left + step * i, 96))
    draw = ImageDraw.Draw(card)
    font = ImageFont.load_default(46)
    font = ImageFont.load_default(min(46, int(46 * (SIDE - 80) / draw.textlength(title, font))))
    draw.text((40, SIDE - 66), title, font=font, fill=INK, anchor="ls")
    draw.text((42, SIDE - 54), subtitle, font=ImageFont.load_default(18), fill=FADED)
    return card


def frames(path: Path) -> list[Image.Image]:
    """The picture, or three frames of the clip."""
    with av.open(str(path)) as media:
        images = [frame.to_image() for frame in media.decode(video=0)]
    return images if len(images) == 1 else [images[len(images) * i // 4] for i in (1, 2, 3)]


def _backdrop(picture: Image.Image) -> Image.Image:
    """The picture's colours as a soft gradient, dark towards the title."""
    soft = picture.resize((5, 5), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    soft = ImageEnhance.Color(soft.filter(ImageFilter.GaussianBlur(24))).enhance(1.6)
    shade = Image.linear_gradient("L").resize((SIDE, SIDE)).point(lambda level: 110 + level // 2)
    return Image.composite(Image.new("RGB", soft.size, NIGHT), soft, shade)


def _paste_print(card: Image.Image, picture: Image.Image, corner: tuple[int, int]) -> None:
    """The picture's centre as a rounded square with a shadow."""
    side = min(picture.size)
    box = ((picture.width - side) // 2, (picture.height - side) // 2)
    picture = picture.crop((*box, box[0] + side, box[1] + side)).resize((INSET, INSET), Image.Resampling.LANCZOS)
    mask = Image.new("L", card.size)
    ImageDraw.Draw(mask).rounded_rectangle((*corner, corner[0] + INSET - 1, corner[1] + INSET - 1), RADIUS, fill=255)
    shadow = mask.filter(ImageFilter.GaussianBlur(14)).point(lambda level: level * 3 // 5)
    card.paste((0, 0, 0), mask=shadow)
    layer = Image.new("RGB", card.size)
    layer.paste(picture, corner)
    card.paste(layer, mask=mask)
