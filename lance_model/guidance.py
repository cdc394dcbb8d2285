"""Lance's classifier-free guidance: an interval of noise levels, and renormalisation of the guided velocity.

Both hang on the MODEL as ComfyUI's own options, so a node can change them and other guidance nodes can replace them.
"""

from __future__ import annotations

from collections.abc import Callable

import comfy.patcher_extension
import torch

KEY = "lance_guidance"
INTERVAL = (0.4, 1.0)
RENORMALISATIONS = ("global", "channel", "none")


def interval_wrapper(start: float, end: float) -> Callable:
    """Outside start < t <= end the conditional prediction stands for both, and the other is not computed."""

    def wrapper(executor, model, conds, x_in, timestep, model_options):
        # Only a conditional and an unconditional branch, in this order, can stand in for each other.
        if len(conds) != 2 or any(c is None for c in conds) or start < float(timestep[0]) <= end:
            return executor(model, conds, x_in, timestep, model_options)
        cond = executor(model, conds[:1], x_in, timestep, model_options)[0]
        return [cond, cond]

    return wrapper


def cfg_function(renormalisation: str) -> Callable[[dict], torch.Tensor]:
    """v = v_u + cfg (v_c - v_u), scaled down to the conditional norm: v · clamp(‖v_c‖ / (‖v‖ + 1e-8), 0, 1).

    `global` takes the norms over a sample's whole latent, `channel` per token, `none` leaves v as it is. ComfyUI hands
    over sigma·v; the ratio does not depend on sigma.
    """

    def guide(args: dict) -> torch.Tensor:
        cond, uncond, scale = args["cond"], args["uncond"], args["cond_scale"]
        if scale == 1.0:
            return cond
        guided = uncond + scale * (cond - uncond)
        if renormalisation == "none":
            return guided
        dims = (1,) if renormalisation == "channel" else tuple(range(1, cond.ndim))
        norms = [torch.linalg.vector_norm(v, dim=dims, keepdim=True) for v in (cond, guided)]
        return guided * (norms[0] / (norms[1] + 1e-8)).clamp(0, 1)

    return guide


def apply(patcher, interval: tuple[float, float] = INTERVAL, renormalisation: str = "global") -> None:
    """Sets Lance's guidance on a model patcher, in place of an earlier setting."""
    wrapper = comfy.patcher_extension.WrappersMP.CALC_COND_BATCH
    patcher.remove_wrappers_with_key(wrapper, KEY)
    patcher.add_wrapper_with_key(wrapper, KEY, interval_wrapper(*interval))
    patcher.set_model_sampler_cfg_function(cfg_function(renormalisation))
