"""Given frames in a clip to be made: image to video, first and last frame, continuing a clip."""

from __future__ import annotations

import comfy.latent_formats
import torch
from comfy_api.latest import io

from ..lance_model import media
from ..lance_model.resolution import LANCE
from .latent import latent_frames
from .resolution import chosen_resolution, resolution_input

CHUNK = 4  # frames in each latent frame but the first


class LanceImageToVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LanceImageToVideo",
            display_name="Lance Image to Video",
            category="Lance",
            description="A latent for a clip whose first or last frames are given; the rest is sampled. "
            "Several start frames continue a clip. Encode the prompt with Lance Encode Prompt, target video.",
            search_aliases=["i2v", "first frame", "last frame", "extend video", "flf2v"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of Load Lance."),
                io.Image.Input(
                    "start",
                    optional=True,
                    tooltip="The first frame, or the last frames of a clip to be continued (the last 1 + 4k of them "
                    "are used).",
                ),
                io.Image.Input(
                    "end",
                    optional=True,
                    tooltip="The last frame, which is held for the clip's last four, or the frames that the clip "
                    "ends with.",
                ),
                resolution_input("video"),
                io.Int.Input(
                    "frames",
                    default=49,
                    min=1,
                    max=1 + 4 * 256,
                    step=4,
                    tooltip="1 + 4k frames, at 12 a second; given ones count. "
                    "1: as many as the model is at its best with.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="How many are made at once."),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls,
        vae,
        resolution: str,
        frames: int,
        batch_size: int,
        start: torch.Tensor | None = None,
        end: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        for name, given in (("start", start), ("end", end)):
            if given is not None:
                media.some(given, name)
        first = start if start is not None else end
        if first is None:
            raise ValueError("Connect a start or an end picture; for a clip from text alone, use Empty Lance Latent.")
        size = chosen_resolution(resolution, "video", vae).fit(first.shape[2], first.shape[1]).size
        frames = frames if frames > 1 else getattr(vae, "trained", LANCE).frames
        given_start = [] if start is None else [_encode_start(vae, start, size)]
        given_end = [] if end is None else [_encode_end(vae, end, size)]
        free = latent_frames(frames) - sum(latent.shape[2] for latent in given_start + given_end)
        if free < 1:
            raise ValueError(
                f"The given frames leave nothing to make in {frames} frames. Ask for more frames or give fewer."
            )
        known = (given_start + given_end)[0]
        # Sampling takes a latent of zeros in the model's own space for an empty one.
        middle = (
            comfy.latent_formats.Wan22().process_out(torch.zeros_like(known[:, :, :1])).expand(-1, -1, free, -1, -1)
        )
        samples = torch.cat([*given_start, middle, *given_end], dim=2)
        mask = torch.zeros_like(samples[:, :1])
        offset = given_start[0].shape[2] if given_start else 0
        mask[:, :, offset : offset + free] = 1
        return io.NodeOutput(
            {"samples": samples.repeat(batch_size, 1, 1, 1, 1), "noise_mask": mask.repeat(batch_size, 1, 1, 1, 1)}
        )


def _fill(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return media.Fit.into(images.shape[2], images.shape[1], size).for_vae(media.to_pictures(images))


def _encode_start(vae, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    count = (images.shape[0] - 1) // CHUNK * CHUNK + 1
    return media.encode(vae, _fill(images[-count:], size))


def _encode_end(vae, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Latent frames of a clip's end. The VAE is causal, so a lead-in frame goes before them and is dropped."""
    held = -images.shape[0] % CHUNK
    images = torch.cat([images[:1], images, images[-1:].expand(held, -1, -1, -1)])
    return media.encode(vae, _fill(images, size))[:, :, 1:]


NODES = [LanceImageToVideo]
