"""Empty latents in the sizes that people use with Lance."""

from __future__ import annotations

import math

import comfy.latent_formats
import comfy.model_management
import torch
from comfy_api.latest import io

from ..lance_model import nano, partners
from ..lance_model.diffusion import Lance
from .choice import chosen

CUSTOM = "custom"
AUTOMATIC = {"automatic picture": "picture", "automatic clip": "clip"}  # follows the MODEL
SIZES = {
    "image": ["768x768", "1024x576", "944x624", "880x672", "1168x496", "576x1024", "624x944", "672x880", "496x1168"],
    "video 480p": ["848x480", "784x528", "736x560", "640x640", "976x416", "480x848", "528x784", "560x736", "416x976"],
    "video 360p": ["640x352", "560x416", "480x480", "352x640", "416x560"],
    "demonstration": [f"{nano.SIDE}x{nano.SIDE}"],
}
OPTIONS = [f"{kind} {size}" for kind, sizes in SIZES.items() for size in sizes]
MAX_FRAMES = 121  # what Lance was trained for: ten seconds at 12 fps


def latent_frames(frames: int) -> int:
    """Latent frames for a number of frames; the VAE makes 1 + 4k frames from 1 + k."""
    return (frames - 1) // 4 + 1


def _automatic(choice: str, model, frames: int) -> tuple[tuple[int, int], int]:
    """Width and height in pixels, and frames."""
    if model is None:
        raise ValueError(f"The size is {choice}. Connect the MODEL of Load Lance to this node, or choose a size.")
    partners.check(model, "model", Lance, "MODEL")
    trained, kind = model.model.trained, AUTOMATIC[choice]
    if kind == "clip":
        return trained.clip, frames if frames > 1 else trained.frames
    if frames > 1:
        raise ValueError(f"The size is {choice}, but frames is {frames}. Choose automatic clip, or set frames to 1.")
    return trained.picture, 1


class EmptyLanceLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EmptyLanceLatent",
            display_name="Empty Lance Latent",
            category="Lance",
            description="An empty latent for a picture (one frame) or a clip, in the sizes that Lance was trained on "
            "or in one of your own.",
            search_aliases=["empty latent image", "empty latent video", "resolution", "lance latent"],
            inputs=[
                io.DynamicCombo.Input(
                    "size",
                    options=[
                        *(io.DynamicCombo.Option(option, []) for option in (*AUTOMATIC, *OPTIONS)),
                        io.DynamicCombo.Option(
                            CUSTOM,
                            [
                                io.Int.Input("width", default=768, min=32, max=4096, step=16, tooltip="In pixels."),
                                io.Int.Input("height", default=768, min=32, max=4096, step=16, tooltip="In pixels."),
                            ],
                        ),
                    ],
                    tooltip="Width x height. automatic: what the connected MODEL is at its best in. "
                    "custom: any multiple of 16.",
                ),
                io.Int.Input(
                    "frames",
                    default=1,
                    min=1,
                    max=1 + 4 * 256,
                    step=4,
                    tooltip=f"1 for a picture; 1 + 4k for a clip of 12 frames a second. Lance was trained up to "
                    f"{MAX_FRAMES}. With automatic clip, 1 is as many as the MODEL is at its best with.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="How many are made at once."),
                io.Model.Input("model", optional=True, tooltip="The MODEL that an automatic size is for."),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, size: dict | None = None, frames: int = 1, batch_size: int = 1, model=None) -> io.NodeOutput:
        size = chosen("size", size, [*AUTOMATIC, *OPTIONS, CUSTOM])
        if size["size"] in AUTOMATIC:
            (width, height), frames = _automatic(size["size"], model, frames)
        elif size["size"] == CUSTOM:
            width, height = size["width"], size["height"]
        else:
            width, height = map(int, size["size"].rsplit(" ", 1)[1].split("x"))
        space = comfy.latent_formats.Wan22
        shape = (
            batch_size,
            space.latent_channels,
            latent_frames(frames),
            height // space.spacial_downscale_ratio,
            width // space.spacial_downscale_ratio,
        )
        try:
            samples = torch.zeros(shape, device=comfy.model_management.intermediate_device())
        except RuntimeError:  # PyTorch's allocator has no words for an artist
            raise ValueError(
                f"There is no memory for {batch_size} x {frames} frames of {width}x{height}: the empty latent alone "
                f"takes {math.prod(shape) * 4 / 1e9:.0f} GB. Lower batch_size, frames or the size."
            ) from None
        return io.NodeOutput({"samples": samples})


NODES = [EmptyLanceLatent]
