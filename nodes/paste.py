"""Edits back in their place: a decoded edit over its source, at the source's own size."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..lance_model import placement


class LancePasteEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LancePasteEdit",
            display_name="Lance Paste Edit Back",
            category="Lance",
            description="Lays an edit back over its source, at the source's own size. "
            "What was cropped away or lies outside of the mask is the source's, untouched.",
            search_aliases=["stitch", "uncrop", "composite edit", "inpaint stitch", "original size"],
            inputs=[
                io.Image.Input("edited", tooltip="The decoded edit, picture or frames, upscaled or not."),
                io.Latent.Input(
                    "latent",
                    tooltip="The latent of Lance Encode Image Edit or Lance Encode Video Edit, sampled or not. "
                    "It knows the source, what was cut out of it, and the mask.",
                ),
                io.Float.Input(
                    "feather",
                    default=2.0,
                    min=0.0,
                    max=50.0,
                    step=0.5,
                    tooltip="How wide the soft seam is, inwards from the edges of crop and mask, in percent of the "
                    "source's shorter side.",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, edited: torch.Tensor, latent: dict, feather: float) -> io.NodeOutput:
        if placement.KEY not in latent:
            raise ValueError(
                "This latent does not know what it was made of. Connect that of Lance Encode Image Edit or "
                "Lance Encode Video Edit, or the sampler's that got it; a saved latent has lost it."
            )
        return io.NodeOutput(placement.paste(edited, latent[placement.KEY], feather))


NODES = [LancePasteEdit]
