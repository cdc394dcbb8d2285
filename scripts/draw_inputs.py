"""Draws the pictures and the clip that the shipped workflows load: `python scripts/draw_inputs.py`, for developers."""

from __future__ import annotations

import math
from fractions import Fraction

import av
import numpy
from PIL import Image, ImageDraw, ImageFilter

from workflows import INPUTS

SCALE = 4  # drawn larger and shrunk, for smooth edges
SKY, GRASS, WALL, ROOF, SUN = (150, 200, 235), (110, 165, 80), (240, 225, 195), (190, 70, 55), (255, 215, 90)


def canvas(width: int, height: int, top: tuple, bottom: tuple) -> Image.Image:
    """A vertical gradient."""
    ramp = numpy.linspace(0, 1, height * SCALE)[:, None, None]
    rows = numpy.array(top) * (1 - ramp) + numpy.array(bottom) * ramp
    return Image.fromarray(numpy.repeat(rows, width * SCALE, axis=1).astype(numpy.uint8))


def finish(picture: Image.Image) -> Image.Image:
    size = (picture.width // SCALE, picture.height // SCALE)
    return picture.filter(ImageFilter.GaussianBlur(SCALE / 3)).resize(size, Image.Resampling.LANCZOS)


def shapes(picture: Image.Image):
    """(ellipse, rectangle, polygon) that take coordinates of the final picture."""
    draw = ImageDraw.Draw(picture)

    def scaled(method):
        return lambda points, colour: method([SCALE * p for p in points], fill=colour)

    return scaled(draw.ellipse), scaled(draw.rectangle), scaled(draw.polygon)


def house() -> Image.Image:
    picture = canvas(640, 480, SKY, (235, 240, 235))
    ellipse, rectangle, polygon = shapes(picture)
    ellipse((500, 40, 580, 120), SUN)
    ellipse((-200, 300, 420, 700), (130, 180, 95))
    rectangle((0, 380, 640, 480), GRASS)
    rectangle((200, 230, 420, 390), WALL)
    polygon((175, 235, 310, 130, 445, 235), ROOF)
    rectangle((290, 300, 340, 390), (110, 75, 50))
    for left in (225, 355):
        rectangle((left, 265, left + 40, 305), (120, 170, 205))
    rectangle((498, 290, 518, 400), (105, 75, 50))
    ellipse((440, 170, 580, 320), (70, 130, 70))
    return finish(picture)


def teapot() -> Image.Image:
    picture = canvas(480, 640, (90, 70, 95), (150, 110, 105))
    ellipse, rectangle, polygon = shapes(picture)
    rectangle((0, 450, 480, 640), (120, 80, 55))
    ellipse((300, 270, 420, 410), (45, 110, 150))
    ellipse((325, 300, 395, 385), (130, 96, 100))
    polygon((150, 350, 60, 280, 75, 262, 175, 310), (45, 110, 150))
    ellipse((120, 250, 350, 480), (60, 135, 180))
    ellipse((180, 235, 290, 275), (45, 110, 150))
    ellipse((222, 215, 248, 241), (235, 190, 80))
    ellipse((165, 285, 205, 345), (140, 190, 215))
    return finish(picture)


def ball(time: float) -> Image.Image:
    """A red ball that rolls from left to right and bounces."""
    picture = canvas(416, 240, (200, 215, 235), (240, 235, 225))
    ellipse, rectangle, _ = shapes(picture)
    rectangle((0, 190, 416, 240), (150, 140, 130))
    x, y = 50 + 155 * time, 165 - 70 * abs(math.sin(1.5 * math.pi * time))
    ellipse((x - 30, 185, x + 30, 200), (125, 115, 105))
    ellipse((x - 25, y - 25, x + 25, y + 25), (205, 55, 50))
    ellipse((x - 14, y - 17, x - 2, y - 5), (240, 150, 140))
    return finish(picture)


def write_clip(path, seconds: int = 2, fps: int = 24, rate: int = 44100) -> None:
    """The ball, with a soft tone."""
    with av.open(str(path), "w") as file:
        video = file.add_stream("h264", rate=fps, options={"crf": "20"})
        video.width, video.height, video.pix_fmt = 416, 240, "yuv420p"
        audio = file.add_stream("aac", rate=rate)
        for i in range(seconds * fps):
            file.mux(video.encode(av.VideoFrame.from_image(ball(i / fps))))
        file.mux(video.encode())
        samples = numpy.arange(seconds * rate)
        tone = (0.2 * numpy.sin(2 * math.pi * 220 * samples / rate) * numpy.exp(-samples / rate)).astype(numpy.float32)
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        file.mux(audio.encode(frame))
        file.mux(audio.encode())


if __name__ == "__main__":
    folder = INPUTS / "lance_dataset"
    folder.mkdir(parents=True, exist_ok=True)
    house().save(INPUTS / "lance_house.png", optimize=True)
    teapot().save(INPUTS / "lance_teapot.png", optimize=True)
    mask = Image.new("L", (640, 480))
    ImageDraw.Draw(mask).ellipse((420, 150, 600, 340), fill=255)
    mask.filter(ImageFilter.GaussianBlur(8)).save(INPUTS / "lance_mask.png", optimize=True)
    for name, picture in (("house", house()), ("teapot", teapot()), ("ball", ball(0.5))):
        picture.save(folder / f"{name}.jpg", quality=88)
    write_clip(INPUTS / "lance_ball.mp4")
