"""What `fast.py` samples and counts: prompts of a task, many at once, with one setting of the sampler."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import comfy.patcher_extension
import comfy.sample
import comfy.utils
import numpy
import torch
from comfy_extras.nodes_easycache import EasyCacheNode
from comfyui_lance.lance_model import context, guidance, loading, nano
from comfyui_lance.lance_model.diffusion import Branches
from comfyui_lance.lance_model.sequence import CONDITIONING
from comfyui_lance.nodes.edit import LanceEncodeEdit
from comfyui_lance.nodes.encode import LanceEncode
from comfyui_lance.nodes.guidance import LanceGuidance
from comfyui_lance.nodes.latent import EmptyLanceLatent
from comfyui_lance.nodes.resolution import KEEP
from comfyui_lance.training import judge, world

import nodes

PROMPTS = "prompts"  # of a batch, in its conditioning
CFG, CFG_PP = 4.0, 2.0  # the cfg_pp samplers want no more
FINE = 200  # steps whose pictures the others are compared with

Frames = numpy.ndarray  # of one prompt, [frames, h, w, 3] in 0..255


class Setting(NamedTuple):
    sampler: str
    scheduler: str
    steps: int
    start: float = guidance.INTERVAL[0]  # CFG acts while start < t
    cache: float = 0.0  # EasyCache's threshold


class Result(NamedTuple):
    right: int  # prompts
    passes: float  # of the transformer over the target for each prompt; each branch of CFG is one
    levels: float  # of 255, root mean square, from the fine ones


@dataclass
class Batch:
    """Prompts of one task that are sampled together, and how each result is judged."""

    positive: list
    negative: list
    latent: torch.Tensor
    noise: torch.Tensor
    checks: list[Callable[[Frames], bool]]

    @classmethod
    def of(cls, encoded: list[tuple], checks: list[Callable[[Frames], bool]], seed: int) -> Batch:
        """Of positive, negative and latent for each prompt."""
        positive, negative, latents = zip(*encoded)
        latent = torch.cat([its["samples"] for its in latents])
        return cls(_joined(positive), _joined(negative), latent, comfy.sample.prepare_noise(latent, seed), checks)

    def parts(self, size: int) -> Iterator[Batch]:
        for first in range(0, len(self.checks), size):
            part = slice(first, first + size)
            conds = [[[its[0][0], its[0][1] | {PROMPTS: its[0][1][PROMPTS][part]}]] for its in self.conds]
            yield Batch(*conds, self.latent[part], self.noise[part], self.checks[part])

    @property
    def conds(self) -> tuple[list, list]:
        return self.positive, self.negative


def _joined(conditionings: tuple) -> list:
    """One CONDITIONING for a batch with a prompt each."""
    ((embeddings, values),) = conditionings[0]
    return [[embeddings, values | {PROMPTS: tuple(its[0][1][CONDITIONING] for its in conditionings)}]]


def _drawn(clip, vae, prompt: str, frames: int) -> tuple:
    latent = EmptyLanceLatent.execute(judge.SIZE, frames, 1).result[0]
    return *LanceEncode.execute(clip, "image" if frames == 1 else "video", prompt).result, latent


def pictures(clip, vae, count: int, seed: int) -> Batch:
    rng = random.Random(f"pictures {seed}")
    scenes = [world.a_scene(rng) for _ in range(count)]

    def check(scene: world.Scene) -> Callable[[Frames], bool]:
        return lambda frames: judge.names(world.detect(frames[0])[1]) == judge.names(scene.things)

    return Batch.of([_drawn(clip, vae, world.describe(its), 1) for its in scenes], list(map(check, scenes)), seed)


def edits(clip, vae, count: int, seed: int) -> Batch:
    rng = random.Random(f"edits {seed}")
    asked = [world.an_edit(rng) for _ in range(count)]

    def encode(edit: world.Edit) -> tuple:
        encoded = LanceEncodeEdit.execute(clip, vae, judge.image(edit.source), edit.instruction, KEEP).result
        return tuple(its[0] for its in encoded)

    def check(target: world.Scene) -> Callable[[Frames], bool]:
        def right(frames: Frames) -> bool:
            background, found = world.detect(frames[0])
            return background == target.background and world.same_things(found, target)

        return right

    return Batch.of(list(map(encode, asked)), [check(its.target) for its in asked], seed)


def clips(clip, vae, count: int, seed: int) -> Batch:
    rng = random.Random(f"clips {seed}")
    asked = [world.a_clip(rng) for _ in range(count)]

    def check(motion: str) -> Callable[[Frames], bool]:
        return lambda frames: world.detect_motion(frames) == motion

    encoded = [_drawn(clip, vae, its.describe(), world.FRAMES) for its in asked]
    return Batch.of(encoded, [check(its.motion) for its in asked], seed)


TASKS = {"pictures": pictures, "edits": edits, "clips": clips}


def _batched(model):
    """The MODEL with a prompt for each of a batch."""
    extra_conds = model.model.extra_conds

    def each(**kwargs) -> dict:
        return extra_conds(**kwargs) | {"sequences": Branches(kwargs[PROMPTS], together=True)}

    model = model.clone()
    model.add_object_patch("extra_conds", each)
    return model


def _keeping(model):
    """The MODEL with contexts that last: every run has the same prompts."""
    store = context.ContextStore()

    def run(executor, *args, **kwargs):
        executor.class_obj.model_options["transformer_options"][context.STORE] = store
        return executor(*args, **kwargs)

    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    model.remove_wrappers_with_key(kind, context.STORE)
    model.add_wrapper_with_key(kind, context.STORE, run)
    return model


class Trials:
    """Of one task, with the same prompts and noise in each."""

    def __init__(self, lance: tuple, task: str, count: int, seed: int, size: int, cache: Path):
        """`size` prompts are sampled together; `cache` is where what 200 steps made is kept."""
        model, clip, self.vae = lance
        self.batch = TASKS[task](clip, self.vae, count, seed)
        self.model, self.seed, self.size = _keeping(_batched(model)), seed, size
        self._passes = 0
        model.model.diffusion_model.llm2vae.register_forward_hook(self._count)
        self._fine = self._kept(cache / f"fast_{task}_{count}_{seed}.npy")

    def _count(self, module, given, out) -> None:
        self._passes += len(out)

    def _kept(self, path: Path) -> numpy.ndarray:
        if not path.exists():
            numpy.save(path, self.made(Setting("euler", "simple", FINE)))
        return numpy.load(path)

    def _model(self, setting: Setting):
        model = self.model
        if setting.start != guidance.INTERVAL[0]:
            model = LanceGuidance.execute(model, setting.start, guidance.INTERVAL[1], "global").result[0]
        if setting.cache:
            model = EasyCacheNode.execute(model, setting.cache, 0.15, 0.95, False).result[0]
        return model

    def made(self, setting: Setting) -> list[Frames]:
        """EasyCache decides for a whole batch, so with it each is made by itself."""
        model, out = self._model(setting), []
        cfg = CFG_PP if setting.sampler.endswith("cfg_pp") else CFG
        for i, part in enumerate(self.batch.parts(1 if setting.cache else self.size)):
            settings = (setting.steps, cfg, setting.sampler, setting.scheduler, *part.conds, part.latent)
            samples = comfy.sample.sample(model, part.noise, *settings, disable_pbar=True, seed=self.seed * 1000 + i)
            (images,) = nodes.VAEDecode().decode(self.vae, {"samples": samples})
            images = (images.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
            out += list(images.reshape(len(part.checks), -1, *images.shape[1:]))
        return out

    def run(self, setting: Setting) -> Result:
        self._passes = 0
        made = self.made(setting)
        right = sum(bool(check(its)) for check, its in zip(self.batch.checks, made))
        squares = [numpy.square(its.astype(float) - fine).mean() for its, fine in zip(made, self._fine)]
        return Result(right, self._passes / len(made), math.sqrt(numpy.mean(squares)))


@contextmanager
def demonstration() -> Iterator[tuple]:
    """MODEL, CLIP and VAE of the demonstration model."""
    comfy.utils.PROGRESS_BAR_ENABLED = False
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        yield loading.load(nano.checkpoint(Path(folder)))
