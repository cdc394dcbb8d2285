"""The ways to a long clip that `long.py` compares, and their judgement."""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import comfy.utils
import numpy
import torch
from comfy_api.latest import InputImpl, Types
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfyui_lance.lance_model import loading, nano
from comfyui_lance.nodes.edit import LanceEncodeVideoEdit
from comfyui_lance.nodes.encode import LanceEncode
from comfyui_lance.nodes.frames import LanceImageToVideo
from comfyui_lance.nodes.resolution import KEEP
from comfyui_lance.training import judge, world
from PIL import Image, ImageDraw

FPS = 12
LONG = 3 * (world.FRAMES - 1) + 1  # frames: three clips of the trained length that share a frame


@dataclass
class Tally:
    """Of the clips that were made one way."""

    named: list[bool] = field(default_factory=list)  # a frame each
    throughout: list[bool] = field(default_factory=list)  # the rest a clip each
    moved: list[float] = field(default_factory=list)
    jumps: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, named: list[bool], moved: float, jump: float, seconds: float) -> None:
        self.named += named
        self.throughout.append(all(named))
        self.moved.append(moved)
        self.jumps.append(jump)
        self.seconds.append(seconds)

    def row(self, name: str) -> str:
        shares = " | ".join(f"{numpy.mean(its):.0%}" for its in (self.named, self.throughout, self.moved))
        jumps = f"{numpy.nanmedian(self.jumps):.1f} | {numpy.nanmax(self.jumps):.1f}"
        return f"| {name} | {shares} | {jumps} | {numpy.mean(self.seconds):.1f} |"


class Bench:
    def __init__(self, by: judge.Judge):
        self.judge = by

    def run(self, options: argparse.Namespace) -> None:
        print("| way | as named, frames | clips | motion | largest jump, median | most | s a clip |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        ways, strips = self._ways(), []
        for name, (make, long, edited) in ways.items():
            if not any(word in name for word in options.ways.split(",")):
                continue
            tally, rng = Tally(), random.Random(f"{edited} {options.seed}")
            for i in range(options.count):
                source, prompt, wanted = self._asked(rng, edited, long)
                started = time.monotonic()
                frames = make(source, prompt, 1000 * options.seed + i)
                seconds = time.monotonic() - started
                tally.add(*self._judged(frames, wanted, edited), seconds)
                if i == 0 and long:
                    if edited and "source" not in dict(strips):
                        strips.append(("source", (source * 255).byte().numpy()))
                    strips.append((name, frames))
            print(tally.row(name), flush=True)
        if options.strips:
            _draw(strips).save(options.strips)

    def _asked(self, rng: random.Random, edited: bool, long: bool) -> tuple:
        """Source, prompt and the scenes that are asked for; a long source goes to and fro."""
        if not edited:
            clip = world.a_clip(rng)
            return None, clip.describe(), (clip.motion, clip.frames)
        source, instruction, target = world.clip_edit(rng)
        forth, back = slice(1, None), slice(-2, None, -1)
        ways = [
            clip.frames + clip.frames[back] + clip.frames[forth] if long else clip.frames for clip in (source, target)
        ]
        images = numpy.stack([numpy.asarray(world.render(scene)) for scene in ways[0]])
        return torch.from_numpy(images).float() / 255, instruction, (None, ways[1])

    def _judged(self, frames: numpy.ndarray, wanted: tuple, edited: bool) -> tuple[list[bool], float, float]:
        motion, scenes = wanted
        name, background = scenes[0].things[0].name, scenes[0].background
        seen = [world.detect(frame, turned=True) for frame in frames]
        named = [found[0] == background and [thing.name for thing in found[1]] == [name] for found in seen]
        at = [(found[1][0].x, found[1][0].y) if len(found[1]) == 1 else (math.nan, math.nan) for found in seen]
        jump = float(numpy.nanmax([math.dist(a, b) for a, b in zip(at, at[1:])] or [math.nan]))
        step, moved = world.FRAMES - 1, []
        for start in range(0, len(frames) - 1, step):
            part = slice(start, start + step + 1)
            drawn = [numpy.asarray(world.render(scene)) for scene in scenes[part]] if edited else None
            asked = world.detect_motion(drawn) if edited else motion
            moved.append(world.detect_motion(frames[part]) == asked)
        return named, float(numpy.mean(moved)), jump

    def _ways(self) -> dict[str, tuple[Callable, bool, bool]]:
        """Name → what makes the clip of source, prompt and seed; whether it is long; and whether it is an edit."""
        plain = self.judge
        windows = {
            "windows of 9, overlap 4": self._windows(3, 1, False),
            "windows of 9, overlap 8": self._windows(3, 2, False),
            "windows of 9, their first frame left out": self._windows(2, 1, True),
        }
        return {
            "text, 9 frames": (self._text(plain, world.FRAMES), False, False),
            "text, 25 at once": (self._text(plain, LONG), True, False),
            **{f"text, 25 in {name}": (self._text(its, LONG), True, False) for name, its in windows.items()},
            "text, 9 continued twice from the last frame": (self._continued(1), True, False),
            "text, 9 continued four times from the last five": (self._continued(5), True, False),
            "edit, 9 frames": (self._edit(plain), False, True),
            "edit, 25 at once": (self._edit(plain), True, True),
            "edit, 25 in three parts": (self._edit_in_parts, True, True),
            **{f"edit, 25 in {name}": (self._edit(its), True, True) for name, its in windows.items()},
        }

    def _windows(self, length: int, overlap: int, frame_before: bool):
        """A judge of the model with ComfyUI's context windows; length and overlap in latent frames."""
        settings = {"context_stride": 1, "closed_loop": False, "fuse_method": "pyramid", "dim": 2, "freenoise": False}
        settings |= {"context_schedule": "standard_static", "causal_window_fix": frame_before}
        model = ContextWindowsManualNode.execute(self.judge.model, length, overlap, **settings)[0]
        return replace(self.judge, model=model)

    def _text(self, by: judge.Judge, frames: int) -> Callable:
        return lambda source, prompt, seed: by.made(prompt, seed, frames)

    def _continued(self, given: int) -> Callable:
        """Clips of the trained length, each from the last frames of the one before, which are not repeated."""

        def make(source, prompt: str, seed: int) -> numpy.ndarray:
            frames = self.judge.made(prompt, seed, world.FRAMES)
            encoded = LanceEncode.execute(self.judge.clip, "video", prompt).result
            while len(frames) < LONG:
                start = torch.from_numpy(frames[-given:]).float() / 255
                latent = LanceImageToVideo.execute(self.judge.vae, KEEP, world.FRAMES, 1, start=start).result[0]
                seed += 1
                frames = numpy.concatenate([frames, self.judge.sample(*encoded, latent, seed)[given:]])
            return frames

        return make

    def _edit(self, by: judge.Judge) -> Callable:
        def make(source: torch.Tensor, prompt: str, seed: int) -> numpy.ndarray:
            components = Types.VideoComponents(images=source, audio=None, frame_rate=Fraction(FPS))
            video = InputImpl.VideoFromComponents(components)
            encoded = LanceEncodeVideoEdit.execute(by.clip, by.vae, video, prompt, KEEP, FPS, 6.0).result
            return by.sample(*encoded[:3], seed)

        return make

    def _edit_in_parts(self, source: torch.Tensor, prompt: str, seed: int) -> numpy.ndarray:
        """Each part for itself, as was the way before windows; they share a frame."""
        make, step = self._edit(self.judge), world.FRAMES - 1
        parts = [make(source[at : at + step + 1], prompt, seed + at) for at in range(0, LONG - 1, step)]
        return numpy.concatenate([parts[0], *(part[1:] for part in parts[1:])])


def _draw(strips: list[tuple[str, numpy.ndarray]]) -> Image.Image:
    """A row of every second frame for each clip, its name above."""
    side, line = world.SIDE, 14
    sheet = Image.new("RGB", ((LONG + 1) // 2 * side, len(strips) * (side + line)), "white")
    for row, (name, frames) in enumerate(strips):
        top = row * (side + line)
        ImageDraw.Draw(sheet).text((4, top + 1), name, fill="black")
        for i, frame in enumerate(frames[::2]):
            sheet.paste(Image.fromarray(frame), (i * side, top + line))
    return sheet


def run(options: argparse.Namespace) -> None:
    comfy.utils.PROGRESS_BAR_ENABLED = False
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        by = judge.Judge(*loading.load(nano.checkpoint(Path(folder))), steps=options.steps)
        Bench(by).run(options)
