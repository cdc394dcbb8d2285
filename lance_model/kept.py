"""Places that a mask keeps stay clean when a run ends in mid-schedule.

To the model they are clean at every noise level (τ = 0), while the sampler's own latent carries noise in them until its
last step. A second part of the run, as KSampler (Advanced) makes it, would take that noise for the picture.
"""

from __future__ import annotations

import comfy.patcher_extension
import torch

KEY = "lance_kept"


def sampler_wrapper(executor, guider, sigmas, extra_args, callback, noise, latent, mask=None, disable_pbar=False):
    samples = executor(guider, sigmas, extra_args, callback, noise, latent, mask, disable_pbar)
    return samples if mask is None else torch.where(mask == 0, latent, samples)


def add_to(patcher) -> None:
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, KEY, sampler_wrapper)
