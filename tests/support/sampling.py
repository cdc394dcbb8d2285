"""Sampling through ComfyUI as its nodes do it, with a look at what the model computes."""

from __future__ import annotations

from dataclasses import dataclass, field

import comfy.hooks
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import torch
from comfyui_lance.lance_model import language, media
from comfyui_lance.lance_model.resolution import PRESETS
from comfyui_lance.lance_model.sequence import Label

PROMPT = "A red fox sleeps under a birch tree in the snow."


@dataclass
class Probe:
    """Counts the branches of each pass and keeps the first velocity of each (cond is 0, uncond is 1)."""

    branches: list[int] = field(default_factory=list)
    velocities: dict[int, torch.Tensor] = field(default_factory=dict)

    def attach(self, model):
        model = model.clone()
        model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, self._wrapper)
        return model

    def _wrapper(self, executor, x, timesteps, transformer_options, *args, **kwargs):
        velocity = executor(x, timesteps, transformer_options, *args, **kwargs)
        branches = transformer_options["cond_or_uncond"]
        self.branches.append(len(branches))
        for branch, its in zip(branches, velocity.chunk(len(branches))):
            self.velocities.setdefault(branch, its.detach().clone())
        return velocity

    @property
    def evaluations(self) -> int:
        return sum(self.branches)


def schedule(steps: int, shift: float) -> torch.Tensor:
    """The reference's noise levels."""
    u = torch.linspace(1, 0, steps + 1)
    return shift * u / (1 + (shift - 1) * u)


def sample(
    model,
    positive,
    negative,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    cfg: float = 4.0,
    latent: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    sampler: str = "euler",
) -> torch.Tensor:
    """What SamplerCustomAdvanced runs, from and to the model's own latent space."""
    space = model.get_model_object("latent_format")
    start = torch.zeros_like(noise) if latent is None else space.process_out(latent)
    out = comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        comfy.samplers.sampler_object(sampler),
        sigmas,
        positive,
        negative,
        start,
        noise_mask=mask,
        disable_pbar=True,
    )
    return space.process_in(out)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a - b‖ / ‖b‖"""
    return float((a.float() - b).norm() / b.norm())


def ksample(model, noise, pair, steps=30, sampler="euler", scheduler="simple", cfg=4.0, **kwargs) -> torch.Tensor:
    """What KSampler runs, in the model's own latent space."""
    out = comfy.sample.sample(
        model, noise, steps, cfg, sampler, scheduler, *pair, torch.zeros_like(noise), disable_pbar=True, **kwargs
    )
    return model.get_model_object("latent_format").process_in(out)


def edit(clip, seen_prompt=PROMPT):
    """Positive and negative CONDITIONING of an edit of noise."""
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(5))
    seen = media.preprocess(picture, PRESETS["image 256"])
    source = media.Medium(seen.patches, seen.grid, torch.randn(1, 48, 1, 4, 6), Label.SOURCE)
    return language.encode_pair(clip, seen_prompt, media=[source])


def lora_patches(scale: float) -> dict:
    """Of both experts, as a LoRA loader adds them."""
    key = "diffusion_model.language_model.model.layers.1.self_attn.{}.weight"
    generator = torch.Generator().manual_seed(9)
    return {
        key.format(name): ("diff", (scale * torch.randn(64, 64, generator=generator),))
        for name in ("q_proj", "q_proj_moe_gen")
    }


def scheduled_lora(strengths: list[float]):
    """A LoRA hook whose strength changes in equal parts of the run."""
    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.need_weight_init = False
    hook.weights = lora_patches(0.1)
    group = comfy.hooks.HookGroup()
    group.add(hook)
    keyframes = comfy.hooks.HookKeyframeGroup()
    for i, strength in enumerate(strengths):
        keyframes.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=i / len(strengths)))
    group.set_keyframes_on_hooks(keyframes)
    return group


def generate(model, clip, steps: int = 2) -> torch.Tensor:
    """A small picture of one prompt and one noise."""
    noise = torch.randn(1, 48, 1, 4, 6, generator=torch.Generator().manual_seed(1))
    positive, negative = language.encode_pair(clip, "A red fox sleeps in the snow.")
    return sample(model, positive, negative, noise, schedule(steps, 3.5))
