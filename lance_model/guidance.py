"""Lance's classifier-free guidance, within an interval of noise levels and renormalised.

It hangs on the MODEL as ComfyUI's own options, so a node can change it and other guidance nodes can replace it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

import comfy.patcher_extension
import comfy.samplers
import torch

from .sequence import CONDITIONING, Sequence, read
from .transformer import COUNT_KEPT

KEY = "lance_guidance"
INTERVAL = (0.4, 1.0)
RENORMALISATIONS = ("global", "channel", "none")
TRAINED, PUBLISHED = UNCONDITIONALS = ("trained", "published")
OFF = "or set image_guidance to 1 in Lance Guidance."

Conds = dict[str, list[dict]]  # a guider's, by name


@dataclass(frozen=True)
class Guidance:
    """Acts while start < t <= end. `image`, the scale of the pictures of an edit or of references, is off at 1.

    `renormalisation` takes norms over a sample's whole latent (global), per token (channel) or leaves velocities as
    they are (none); `minimum` is the smallest factor that it may multiply a velocity by. `unconditional` says which
    positions the unconditional branch has, see `published`; as published, norms also count what a clip is given.
    """

    start: float = INTERVAL[0]
    end: float = INTERVAL[1]
    renormalisation: str = "global"
    unconditional: str = TRAINED
    minimum: float = 0.0
    image: float = 1.0

    def __post_init__(self):
        if self.renormalisation == "none" and self.minimum:
            raise ValueError(
                "Without renormalisation nothing is scaled down, so it has no minimum. "
                "Set renormalisation_minimum to 0, or renormalisation to global or channel."
            )

    def add_to(self, patcher) -> None:
        """Sets it on a model patcher, in place of an earlier setting."""
        wrappers = comfy.patcher_extension.WrappersMP
        for kind, wrapper in ((wrappers.OUTER_SAMPLE, self.run), (wrappers.CALC_COND_BATCH, self.branches)):
            patcher.remove_wrappers_with_key(kind, KEY)
            patcher.add_wrapper_with_key(kind, KEY, wrapper)
        patcher.set_model_sampler_cfg_function(self.guide)

    def run(self, executor: Callable, *args, **kwargs):
        """Wraps a sampling run. The guider's conds and model_options are copies made for this run."""
        guider = executor.class_obj
        if self.image != 1.0:
            self._check_pictures(guider)
            guider.model_options["disable_cfg1_optimization"] = True  # pictures guide at a CFG of 1 too
        if self.unconditional == PUBLISHED:
            guider.conds = published(guider.conds)
            guider.model_options["transformer_options"][COUNT_KEPT] = True
        return executor(*args, **kwargs)

    def _check_pictures(self, guider) -> None:
        stock = type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
        if not stock or "negative" not in guider.conds:
            raise ValueError(
                "Image guidance works with a positive and a negative, as KSampler and CFG Guider take them. "
                f"Use one of those, {OFF}"
            )
        if guider.model_options.get("sampler_cfg_function") != self.guide:
            raise ValueError(
                "Another node has put a CFG of its own in the place of Lance's, so image guidance cannot act. "
                f"Take that node out, {OFF}"
            )
        sequences = [cond[CONDITIONING] for cond in guider.conds["negative"] if CONDITIONING in cond]
        if all(sequence.without_media is sequence for sequence in sequences):
            raise ValueError(
                "Image guidance has nothing to act on, as the negative conditioning shows no pictures. Connect that of "
                f"Lance Encode Image Edit, Lance Encode Video Edit or Lance Encode References, {OFF}"
            )

    def _acts(self, timestep: torch.Tensor) -> bool:
        return self.start < float(timestep[0]) <= self.end

    def branches(self, executor: Callable, model, conds, x_in, timestep, model_options):
        """Outside the interval the conditional prediction stands for both, and the other is not computed."""
        # Only a conditional and an unconditional branch, in this order, can stand in for each other.
        if len(conds) != 2 or any(c is None for c in conds) or self._acts(timestep):
            return executor(model, conds, x_in, timestep, model_options)
        cond = executor(model, conds[:1], x_in, timestep, model_options)[0]
        return [cond, cond]

    def guide(self, args: dict) -> torch.Tensor:
        """v = v_n + image (v_u - v_n) + cfg (v_c - v_u), v_n being the unconditional branch without its pictures; then
        v · clamp(‖v_c‖ / (‖v‖ + 1e-8), minimum, 1).

        The sum is that of InstructPix2Pix (Brooks et al. 2023, equation 3) and of the reference's `cfg_vit_scale`. The
        branch without pictures keeps the system prompt. ComfyUI hands over sigma·v; the ratio does not depend on it.
        """
        cond, uncond, scale = args["cond"], args["uncond"], args["cond_scale"]
        pictures = self.image != 1.0 and self._acts(args["timestep"])
        if scale == 1.0 and not pictures:
            return cond
        guided = uncond + scale * (cond - uncond)
        if pictures:
            guided = guided + (self.image - 1) * (uncond - _without_media(args))
        if self.renormalisation == "none":
            return guided
        dims = (1,) if self.renormalisation == "channel" else tuple(range(1, cond.ndim))
        norms = [torch.linalg.vector_norm(v, dim=dims, keepdim=True) for v in (cond, guided)]
        return guided * (norms[0] / (norms[1] + 1e-8)).clamp(self.minimum, 1)


def _without_media(args: dict) -> torch.Tensor:
    """sigma·v of the unconditional branch without its pictures: a pass of its own."""

    def changed(cond: dict) -> dict:
        values = cond["model_conds"] | {"sequences": cond["model_conds"]["sequences"].without_media()}
        # Step caches know a branch by its uuid from step to step.
        return cond | {"model_conds": values, "uuid": uuid.uuid5(cond["uuid"], "without media")}

    conds = [None, [changed(cond) for cond in args["input_uncond"]]]  # patches know the unconditional one by its place
    given = (args["input"], args["timestep"], args["model_options"])
    return args["input"] - comfy.samplers.calc_cond_batch(args["model"], conds, *given)[1]


def published(conds: Conds) -> Conds:
    """A run's conds with the positions of the reference's cached sampler in all branches but the positive.

    There what follows the prompt keeps the place that it has in the positive's sequence; the target alone stands where
    the shorter sequence ends. The longest positive prompt counts; a longer negative prompt leaves no gap.
    """
    lengths = [read(cond).prompt_length for cond in conds.get("positive", ()) if CONDITIONING in cond]
    moved: dict[Sequence, Sequence] = {}  # one each, as a run knows sequences by identity

    def placed(cond: dict) -> dict:
        sequence = read(cond)
        if sequence is None:
            return cond
        gap = max(0, max(lengths, default=0) - sequence.prompt_length)
        return cond | {CONDITIONING: moved.setdefault(sequence, replace(sequence, gap=gap))}

    return {name: its if name == "positive" else [placed(cond) for cond in its] for name, its in conds.items()}
