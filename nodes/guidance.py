"""Lance's guidance and its exact noise schedule."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..lance_model import guidance, partners
from ..lance_model.diffusion import Lance


class LanceGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        start, end = guidance.INTERVAL
        return io.Schema(
            node_id="LanceGuidance",
            display_name="Lance Guidance",
            category="Lance",
            description="Changes when Lance applies CFG, against what, and how it renormalises the result. "
            "Load Lance already sets the model's defaults.",
            search_aliases=["cfg interval", "cfg renorm", "rescale cfg", "guidance", "image cfg", "instruct pix2pix"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Load Lance."),
                io.Float.Input(
                    "start",
                    default=start,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="CFG acts while start < t <= end; t runs from 1 (noise) to 0. "
                    "Outside, a step is half the work.",
                ),
                io.Float.Input("end", default=end, min=0.0, max=1.0, step=0.01, tooltip="See start."),
                io.Combo.Input(
                    "renormalisation",
                    options=list(guidance.RENORMALISATIONS),
                    tooltip="Keeps the guided velocity from growing beyond the conditional one: "
                    "over the whole latent (global), per token (channel) or not at all.",
                ),
                io.Combo.Input(
                    "unconditional",
                    options=list(guidance.UNCONDITIONALS),
                    optional=True,
                    advanced=True,
                    tooltip="The branch that CFG moves away from: as the model was trained, "
                    "or with the positions of the reference's cached sampler, which made the published figures.",
                ),
                io.Float.Input(
                    "renormalisation_minimum",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Renormalisation multiplies by no less than this. Raise it if pictures come out dull; "
                    "1 is no renormalisation.",
                ),
                io.Float.Input(
                    "image_guidance",
                    default=1.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="For edits and references: above 1 the result follows their pictures more closely. "
                    "1 is off; any other value costs a third pass in each step in which CFG acts.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls,
        model,
        start: float,
        end: float,
        renormalisation: str,
        unconditional: str = guidance.TRAINED,
        renormalisation_minimum: float = 0.0,
        image_guidance: float = 1.0,
    ) -> io.NodeOutput:
        partners.check(model, "model", Lance, "MODEL")
        model = model.clone()
        settings = (start, end, renormalisation, unconditional, renormalisation_minimum, image_guidance)
        guidance.Guidance(*settings).add_to(model)
        return io.NodeOutput(model)


class LanceScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LanceScheduler",
            display_name="Lance Scheduler",
            category="Lance",
            description="The reference's own noise schedule, exactly: t = s·u / (1 + (s - 1)·u), "
            "u from 1 to 0 in equal steps, with the MODEL's flow shift s. "
            "For SamplerCustomAdvanced; KSampler's simple schedule is within a thousandth of it.",
            search_aliases=["sigmas", "flow shift", "schedule"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Load Lance."),
                io.Int.Input("steps", default=30, min=1, max=10000, tooltip="30 is the model's default."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1, only the last steps of a longer schedule: for image to image.",
                ),
            ],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(cls, model, steps: int, denoise: float) -> io.NodeOutput:
        shift = getattr(model.get_model_object("model_sampling"), "shift", None)
        if shift is None:
            raise ValueError(
                "This MODEL's sampling has no flow shift. Connect the MODEL of Load Lance, "
                "or one patched by ModelSamplingSD3."
            )
        u = torch.linspace(1, 0, int(steps / denoise) + 1)[-(steps + 1) :]
        return io.NodeOutput(shift * u / (1 + (shift - 1) * u))


NODES = [LanceGuidance, LanceScheduler]
