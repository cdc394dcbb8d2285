"""Judges the demonstration model from pixels and words: prompts of its world through the plugin's nodes and ComfyUI's
KSampler, results read back by the world's own rules.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch

import nodes

from ..nodes.answer import LanceAnswer
from ..nodes.edit import LanceEncodeEdit
from ..nodes.encode import LanceEncode
from ..nodes.frames import LanceImageToVideo
from ..nodes.latent import EmptyLanceLatent
from ..nodes.reference import LanceEncodeReferences
from ..nodes.resolution import KEEP
from . import world

OFF = {"sampling": "off"}
SIZE = {"size": f"demonstration {world.SIDE}x{world.SIDE}"}


@dataclass
class Judge:
    """MODEL, CLIP and VAE under test, sampled as the workflows do it."""

    model: object
    clip: object
    vae: object
    steps: int = 30
    cfg: float = 4.0

    def sample(self, positive, negative, latent: dict, seed: int) -> torch.Tensor:
        """Frames [n, h, w, 3] in 0..255."""
        settings = (seed, self.steps, self.cfg, "euler", "simple")
        (samples,) = nodes.common_ksampler(self.model, *settings, positive, negative, latent)
        (images,) = nodes.VAEDecode().decode(self.vae, samples)
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).numpy()

    def made(self, prompt: str, seed: int, frames: int = 1) -> numpy.ndarray:
        target = "image" if frames == 1 else "video"
        latent = EmptyLanceLatent.execute(SIZE, frames, 1).result[0]
        return self.sample(*LanceEncode.execute(self.clip, target, prompt).result, latent, seed)

    def edited(self, edit: world.Edit, seed: int) -> numpy.ndarray:
        encoded = LanceEncodeEdit.execute(self.clip, self.vae, image(edit.source), edit.instruction, KEEP).result
        (picture,) = self.sample(*(out[0] if isinstance(out, list) else out for out in encoded), seed)
        return picture

    def answered(self, task: dict, shown: dict) -> str:
        node = LanceAnswer.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
        (text,) = node.execute(self.model, self.clip, task, 40, OFF, **shown).result[0]
        return text

    # Each of these makes one thing and tells whether it is right.

    def text_to_image(self, rng: random.Random, seed: int) -> bool:
        scene = world.a_scene(rng)
        (picture,) = self.made(world.describe(scene), seed)
        return names(world.detect(picture)[1]) == names(scene.things)

    def image_edit(self, rng: random.Random, seed: int) -> bool:
        edit = world.an_edit(rng)
        background, found = world.detect(self.edited(edit, seed))
        return background == edit.target.background and world.same_things(found, edit.target)

    def captioned(self, scene: world.Scene) -> str:
        shown = {"images": {"image0": image(scene)}, "image_resolution": KEEP}
        return self.answered({"task": "caption", "style": "accurate"}, shown)

    def caption(self, rng: random.Random, seed: int) -> bool:
        scene = world.a_scene(rng)
        text = self.captioned(scene)
        return all(name in text for name in names(scene.things))

    def text_to_video(self, rng: random.Random, seed: int) -> bool:
        clip = world.a_clip(rng)
        frames = self.made(clip.describe(), seed, world.FRAMES)
        return world.detect_motion(frames) == clip.motion

    def image_to_video(self, rng: random.Random, seed: int) -> bool:
        """Begins with the given picture, to the eye and to the mean pixel."""
        clip = world.a_clip(rng)
        given = image(clip.first)
        latent = LanceImageToVideo.execute(self.vae, KEEP, world.FRAMES, 1, start=given).result[0]
        frames = self.sample(*LanceEncode.execute(self.clip, "video", clip.describe()).result, latent, seed)
        difference = numpy.abs(frames[0].astype(float) - given[0].numpy() * 255).mean()
        return difference < 12 and world.same_things(world.detect(frames[0])[1], clip.first)

    def image_to_video_motion(self, rng: random.Random, seed: int) -> bool:
        clip = world.a_clip(rng)
        latent = LanceImageToVideo.execute(self.vae, KEEP, world.FRAMES, 1, start=image(clip.first)).result[0]
        encoded = LanceEncode.execute(self.clip, "video", clip.describe()).result
        return world.detect_motion(self.sample(*encoded, latent, seed)) == clip.motion

    def subject(self, rng: random.Random, seed: int) -> bool:
        references, prompt, scene = world.a_subject(rng)
        while len(references) > 1:
            references, prompt, scene = world.a_subject(rng)
        encoded = LanceEncodeReferences.execute(
            self.clip, self.vae, {"image0": image(references[0])}, prompt, "image", KEEP
        ).result
        latent = EmptyLanceLatent.execute(SIZE, 1, 1).result[0]
        (picture,) = self.sample(*encoded, latent, seed)
        return names(world.detect(picture)[1]) == names(scene.things)


# Task → what is asked of it: the share of right results.
TASKS: dict[str, tuple[Callable, float]] = {
    "text to image: colour and shape": (Judge.text_to_image, 0.90),
    "image edit: done, and the rest kept": (Judge.image_edit, 0.85),
    "caption: colour and shape": (Judge.caption, 0.90),
    "text to video: motion": (Judge.text_to_video, 0.85),
    "image to video: starts from the picture": (Judge.image_to_video, 0.95),
    "image to video: motion": (Judge.image_to_video_motion, 0.85),
    "subject: colour and shape kept": (Judge.subject, 0.80),
}


def image(scene: world.Scene) -> torch.Tensor:
    """ComfyUI's image [1, h, w, 3]."""
    return torch.from_numpy(numpy.asarray(world.render(scene)).astype(numpy.float32) / 255)[None]


def names(things) -> list[str]:
    return sorted(thing.name for thing in things)


def right(judge: Judge, task: str, count: int, seed: int = 0) -> float:
    """The share of right results over `count` prompts; the same prompts and noise for the same seed."""
    rng = random.Random(f"{task} {seed}")
    return sum(TASKS[task][0](judge, rng, 1000 * seed + i) for i in range(count)) / count
