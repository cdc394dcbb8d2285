"""What the model makes as users sample it, many at once: prompts of the world, pictures and clips for them, and whether
they are right.

The sampler is ComfyUI's KSampler with `euler` and `simple`, over the trainee's own modules.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import comfy.model_sampling
import comfy.samplers
import numpy
import torch

from ..lance_model import tasks
from ..lance_model.diffusion import LanceConfig
from ..lance_model.guidance import Guidance
from ..lance_model.language import LanceTokenizer
from ..lance_model.sequence import Grid, Label, Segment
from . import world
from .autoencoder import NarrowTAEHV, pixels
from .data import Pools, Sample, for_vision
from .hard import CATEGORIES
from .judge import TASKS
from .loss import Branch, embed
from .model import Trainee

CFG, GUIDANCE = 4.0, Guidance()  # as the model comes
GRIDS = {1: (1, 4, 4), world.FRAMES: (3, 4, 4)}  # of latents, by frames


def of_task(name: str) -> Callable:
    task, _ = TASKS[name]
    return task


def of_category(name: str) -> Callable:
    its = CATEGORIES[name]
    return lambda judge, rng, seed: its.right(judge, its.make(rng), seed)


# What is asked for: (judge, rng, seed) → whether what that judge makes is right.
KINDS: dict[str, Callable] = {
    "text to image": of_task("text to image: colour and shape"),
    "image edit": of_task("image edit: done, and the rest kept"),
    "text to video": of_task("text to video: motion"),
} | {name: of_category(name) for name in CATEGORIES if name != "questions"}


class Shown:
    """In a judge's place: shows what has been made already, and notes what it was asked for."""

    def __init__(self, frames: numpy.ndarray):
        self.frames, self.prompt, self.source, self.count = frames, "", None, 1

    def made(self, prompt: str, seed: int, frames: int = 1) -> numpy.ndarray:
        self.prompt, self.count = prompt, frames
        return self.frames[:frames]

    def edited(self, edit: world.Edit, seed: int) -> numpy.ndarray:
        self.prompt, self.source = edit.instruction, edit.source
        return self.frames[0]


@dataclass
class Prompt:
    """One thing to make: the same `chance` asks for the same."""

    kind: str
    chance: str
    sample: Sample = field(init=False)
    source: world.Scene | None = field(init=False)
    grid: Grid = field(init=False)

    def __post_init__(self):
        asked = Shown(numpy.zeros((world.FRAMES, world.SIDE, world.SIDE, 3), numpy.uint8))
        self._judged_by(asked)
        self.source, self.grid = asked.source, GRIDS[asked.count]
        system = tasks.EDIT["image"] if asked.source else tasks.TEXT_TO["image" if asked.count == 1 else "video"]
        self.sample = Sample(self.kind, asked.prompt, system, label=Label.SOURCE if asked.source else None)

    def right(self, frames: numpy.ndarray) -> bool:
        """Whether frames [n, h, w, 3] of bytes show what was asked for."""
        return self._judged_by(Shown(frames))

    def _judged_by(self, judge: Shown) -> bool:
        return KINDS[self.kind](judge, random.Random(self.chance), 0)


@dataclass
class Rollout:
    """Samples of prompts alike in shape: latents [prompts · each, 48, t, h, w], those of a prompt in a row, and whether
    each is right [prompts, each]."""

    prompts: list[Prompt]
    latents: torch.Tensor
    right: torch.Tensor


def sigmas(steps: int) -> torch.Tensor:
    """Noise levels [steps + 1] from 1 to 0."""
    sampling = type("Sampling", (comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST), {})
    return comfy.samplers.simple_scheduler(sampling(LanceConfig), steps)


def in_batches(prompts: Iterable[Prompt], tokenizer: LanceTokenizer, most: int) -> list[list[Prompt]]:
    """The prompts by all that has to be alike, in batches of `most`."""
    buckets: dict[tuple, list[Prompt]] = {}
    for prompt in prompts:
        sample = prompt.sample
        sample.prompt_ids = tokenizer.ids(sample.prompt)
        buckets.setdefault((sample.system, len(sample.prompt_ids), prompt.grid), []).append(prompt)
    return [bucket[i : i + most] for bucket in buckets.values() for i in range(0, len(bucket), most)]


@torch.no_grad()
def pooled(prompts: list[Prompt], autoencoder: NarrowTAEHV, device: torch.device) -> Pools:
    """The prompts' sources, which their samples then refer to."""
    pictures = []
    for prompt in prompts:
        if prompt.source is not None:
            prompt.sample.sources = (len(pictures),)
            pictures.append(world.render(prompt.source))
    pools = Pools(*(torch.empty(0, device=device) for _ in range(5)), buckets={})
    if pictures:
        pools.latents = autoencoder.latents(pixels(pictures)[:, :, None].to(device))
        pools.pixels = for_vision(pictures).to(device)
    return pools


def branches(trainee: Trainee, pools: Pools, prompts: list[Prompt]) -> tuple[Branch, Branch]:
    """The conditional branch, and the one with an empty prompt."""
    batch, target = [prompt.sample for prompt in prompts], Segment(Label.TARGET, grid=prompts[0].grid)
    words = (batch[0].prompt, "")
    return tuple(Branch.of(trainee, embed(trainee, pools, batch, prompt, target)) for prompt in words)


def guided(
    trainee: Trainee, both: tuple[Branch, Branch], x: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The velocity that is sampled with, and its conditional and unconditional parts, of latents x [B, 48, t, h, w] at
    noise levels [B]."""
    tau = sigma[:, None].expand(-1, x[0, 0].numel())
    conditional, unconditional = (branch.velocity(trainee.transformer, x, tau) for branch in both)
    velocity = GUIDANCE.guide({"cond": conditional, "uncond": unconditional, "cond_scale": CFG})
    acts = (sigma > GUIDANCE.start) & (sigma <= GUIDANCE.end)
    return torch.where(acts[:, None, None, None, None], velocity, conditional), conditional, unconditional


@torch.no_grad()
def sampled(trainee: Trainee, pools: Pools, prompts: list[Prompt], noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Latents from noise [prompts · each, 48, t, h, w]."""
    both, x = branches(trainee, pools, prompts), noise
    levels = sigmas(steps).tolist()
    for now, after in zip(levels, levels[1:]):
        velocity, _, _ = guided(trainee, both, x, x.new_full((len(x),), now))
        x = x + (after - now) * velocity
    return x


@torch.no_grad()
def decoded(autoencoder: NarrowTAEHV, latents: torch.Tensor) -> numpy.ndarray:
    """Frames [B, n, h, w, 3] of bytes."""
    clips = autoencoder.clips(latents).movedim(1, -1)
    return (clips.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def rollout(
    trainee: Trainee,
    pools: Pools,
    autoencoder: NarrowTAEHV,
    prompts: list[Prompt],
    each: int,
    steps: int,
    generator: torch.Generator,
) -> Rollout:
    """`each` samples of prompts alike in shape."""
    noise = torch.randn(len(prompts) * each, 48, *prompts[0].grid, generator=generator).to(pools.latents.device)
    latents = sampled(trainee, pools, prompts, noise, steps)
    made = decoded(autoencoder, latents).reshape(len(prompts), each, -1, world.SIDE, world.SIDE, 3)
    right = [[prompt.right(frames) for frames in its] for prompt, its in zip(prompts, made)]
    return Rollout(prompts, latents, torch.tensor(right))
