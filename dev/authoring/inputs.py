"""Draws the pictures and the clips that the shipped workflows load: `bash scripts/draw.sh inputs`."""

from __future__ import annotations

import random
from fractions import Fraction

import av
import numpy
from PIL import Image

from ...training import lessons
from ...training.world import OUTLINES, POSITIONS, SIDE, SIZES, Scene, Thing, a_clip, render
from ..host.workflows import INPUTS

FPS, RATE = 12, 44100


def scene(background: str, *things: tuple[str, str, str]) -> Scene:
    """A scene of things given as colour, shape and place: one of middle size, or several small ones."""
    radius = SIZES["" if len(things) == 1 else "small"]
    return Scene(
        tuple(Thing(shape, color, radius, *POSITIONS[place], place=place) for color, shape, place in things), background
    )


CIRCLE = scene("green", ("red", "circle", "on the left"))
PICTURES = {
    "lance_circle": CIRCLE,
    "lance_circle_right": scene("green", ("red", "circle", "on the right")),
    "lance_star": scene("white", ("blue", "star", "in the middle")),
    "lance_pair": scene("blue", ("blue", "circle", "on the left"), ("orange", "square", "on the right")),
}


def write_clip(path, frames: list[Image.Image]) -> None:
    """The frames, with a soft tone."""
    with av.open(str(path), "w") as file:
        video = file.add_stream("h264", rate=FPS, options={"crf": "8"})
        video.width, video.height, video.pix_fmt = SIDE, SIDE, "yuv420p"
        audio = file.add_stream("aac", rate=RATE)
        for frame in frames:
            file.mux(video.encode(av.VideoFrame.from_image(frame)))
        file.mux(video.encode())
        samples = numpy.arange(len(frames) * RATE // FPS)
        tone = (0.2 * numpy.sin(2 * numpy.pi * 220 * samples / RATE) * numpy.exp(-samples / RATE)).astype(numpy.float32)
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
        file.mux(audio.encode(frame))
        file.mux(audio.encode())


def write_examples(name: str, examples: list[tuple[Image.Image, str]]) -> None:
    """A folder of pictures, and of text files beside them where there are words."""
    folder = INPUTS / name
    folder.mkdir(parents=True, exist_ok=True)
    for i, (picture, words) in enumerate(examples):
        picture.save(folder / f"{i:02}.png", optimize=True)
        if words:
            (folder / f"{i:02}.txt").write_text(words + "\n")


if __name__ == "__main__":
    folder = INPUTS / "lance_dataset"
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawn in PICTURES.items():
        render(drawn).save(INPUTS / f"{name}.png", optimize=True)
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (SIDE // 2, 0, SIDE, SIDE))
    mask.save(INPUTS / "lance_mask.png", optimize=True)
    for color, shape in zip(("purple", "green", "yellow"), list(OUTLINES)[2:]):
        render(scene("blue", (color, shape, "at the top"))).save(folder / f"{shape}.png", optimize=True)
    moving = a_clip(random.Random(0), "right", CIRCLE.things[0])
    settings = [Scene(frame.things, CIRCLE.background) for frame in moving.frames]
    frames = [render(frame) for frame in settings]
    write_clip(INPUTS / "lance_moving.mp4", frames)
    write_clip(INPUTS / "lance_to_and_fro.mp4", frames + frames[-2::-1] + frames[1:])
    write_examples("lance_look", lessons.look_examples())
    write_examples("lance_pairs", [(lessons.side_by_side(e), e.instruction) for e in lessons.edit_examples()])
    write_examples("lance_known_edits", [(render(e.source), e.instruction) for e in lessons.known_edits()])
