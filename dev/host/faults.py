"""A custom node for the endurance checks and tests alone: a MODEL and a VAE that run out of memory.

Each of the nodes raises what ComfyUI takes for a full card, once: at a step of the sampling, or when the VAE decodes.
"""

from __future__ import annotations

import copy

import comfy.model_management
import comfy.patcher_extension

MESSAGE = "Allocation on device: injected"


class OutOfMemoryInSampling:
    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "patch", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "step": ("INT", {"default": 1})}}

    def patch(self, model, step: int):
        passes = 0

        def fail(executor, *args, **kwargs):
            nonlocal passes
            passes += 1
            if passes == step:
                raise comfy.model_management.OOM_EXCEPTION(MESSAGE)
            return executor(*args, **kwargs)

        model = model.clone()
        model.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, fail)
        return (model,)


class OutOfMemoryInDecode:
    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "patch", ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",), "times": ("INT", {"default": 1})}}

    def patch(self, vae, times: int):
        vae = copy.copy(vae)
        decode = vae.first_stage_model.decode
        vae.first_stage_model = copy.copy(vae.first_stage_model)  # the weights stay the same
        calls = 0

        def fail(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls <= times:
                raise comfy.model_management.OOM_EXCEPTION(MESSAGE)
            return decode(*args, **kwargs)

        vae.first_stage_model.decode = fail
        return (vae,)


NODE_CLASS_MAPPINGS = {"OutOfMemoryInSampling": OutOfMemoryInSampling, "OutOfMemoryInDecode": OutOfMemoryInDecode}
