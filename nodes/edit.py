"""Edits: a source and an instruction → CONDITIONING and the latent to sample."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch
from comfy_api.latest import Input, io

from ..lance_model import clips, habits, language, masks, media, placement, tasks
from ..lance_model.sequence import Label
from .encode import advanced_prompts
from .progress import tell
from .resolution import chosen_resolution, resolution_input

NOTHING = "With this mask nothing will change. Paint white what may, and not only where resolution has it cropped away."


def _encode(
    clip,
    vae,
    frames: torch.Tensor,
    prompt: str,
    resolution: str,
    modality: str,
    mask: torch.Tensor | None,
    negative_prompt: str,
    system_prompt: str,
    again: Callable[[], torch.Tensor],
) -> tuple:
    """`again` gives the frames once more, when the edit is laid back over them."""
    if not prompt.strip():
        raise ValueError("There is no instruction. Write into prompt what to change, such as: make the circle blue.")
    rule = chosen_resolution(resolution, modality, clip)
    source = media.preprocess(frames, rule, Label.SOURCE, vae)
    system = system_prompt.strip() or tasks.EDIT[modality]
    positive, negative = language.encode_pair(clip, prompt, negative_prompt, [source], system=system)
    fit = rule.fit(frames.shape[2], frames.shape[1])
    latent = {"samples": source.latent, placement.KEY: placement.Placement(again, fit, mask)}
    if mask is not None:
        latent["noise_mask"] = masks.on_latent(mask, frames, rule)
    return positive, negative, latent


def _noted(latents: Iterable[dict]) -> str | None:
    """A sentence about a mask that keeps the whole of a latent."""
    if all("noise_mask" not in latent or latent["noise_mask"].any() for latent in latents):
        return None
    logging.warning(NOTHING)
    return NOTHING


class LanceEncodeEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LanceEncodeEdit",
            display_name="Lance Encode Image Edit",
            category="Lance",
            description="Encodes a picture and an instruction for editing it. Sample the latent with denoise 1. "
            "A mask limits what changes. Each picture of a batch becomes an edit of its own.",
            search_aliases=["image edit", "instruct", "inpaint", "kontext", "qwen edit"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Load Lance."),
                io.Vae.Input("vae", tooltip="The VAE of Load Lance."),
                io.Image.Input("image", tooltip="The picture to edit."),
                io.String.Input(
                    "prompt", multiline=True, dynamic_prompts=True, tooltip="What to change, as an instruction."
                ),
                resolution_input("image"),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the picture may change; soft edges count. Everywhere, if not connected.",
                ),
                *advanced_prompts(),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", is_output_list=True),
                io.Conditioning.Output(display_name="negative", is_output_list=True),
                io.Latent.Output(display_name="latent", is_output_list=True),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        clip,
        vae,
        image: torch.Tensor,
        prompt: str,
        resolution: str,
        mask: torch.Tensor | None = None,
        negative_prompt: str = "",
        system_prompt: str = "",
    ) -> io.NodeOutput:
        edits = []
        mask = masks.painted(mask, len(media.some(image, "image")), "pictures")
        prompts = (negative_prompt, system_prompt)
        for i, picture in enumerate(image.split(1)):
            own_mask = None if mask is None else mask[min(i, len(mask) - 1)][None]
            own = (own_mask, *prompts, lambda picture=picture: picture)
            edits.append(_encode(clip, vae, picture, prompt, resolution, "image", *own))
        tell(cls, habits.noted(prompt, negative_prompt), _noted(latent for *_, latent in edits))
        return io.NodeOutput(*(list(outputs) for outputs in zip(*edits)))


class LanceEncodeVideoEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LanceEncodeVideoEdit",
            display_name="Lance Encode Video Edit",
            category="Lance",
            description="Encodes a clip and an instruction for editing it. "
            "Sample the latent with denoise 1, decode, and give Create Video the frame rate from here; "
            "the sound comes from Get Video Components.",
            search_aliases=["video edit", "video to video", "v2v"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Load Lance."),
                io.Vae.Input("vae", tooltip="The VAE of Load Lance."),
                io.Video.Input("video", tooltip="The clip to edit."),
                io.String.Input(
                    "prompt", multiline=True, dynamic_prompts=True, tooltip="What to change, as an instruction."
                ),
                resolution_input("video"),
                io.Float.Input(
                    "sample_fps",
                    default=media.FPS,
                    min=1.0,
                    max=60.0,
                    step=1.0,
                    advanced=True,
                    tooltip="How many frames a second the model sees and makes. Lance was trained at 12.",
                ),
                io.Float.Input(
                    "max_seconds",
                    default=media.MAX_SECONDS,
                    min=0.5,
                    max=600.0,
                    step=0.5,
                    advanced=True,
                    tooltip="A longer clip is sampled more sparsely, as if it were this long. Memory grows with it.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the clip may change: one mask, or one for each sampled frame. Everywhere, if not "
                    "connected.",
                ),
                *advanced_prompts(),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(display_name="latent"),
                io.Float.Output(display_name="fps", tooltip="Plays the edited clip as long as the source."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        clip,
        vae,
        video: Input.Video,
        prompt: str,
        resolution: str,
        sample_fps: float,
        max_seconds: float,
        mask: torch.Tensor | None = None,
        negative_prompt: str = "",
        system_prompt: str = "",
    ) -> io.NodeOutput:
        frames, seconds = clips.sampled(video, sample_fps, max_seconds)
        mask = masks.painted(mask, len(frames), "sampled frames")
        prompts = (negative_prompt, system_prompt)

        def again() -> torch.Tensor:  # a long clip's frames are not kept in memory for it
            return clips.sampled(video, sample_fps, max_seconds)[0]

        outputs = _encode(clip, vae, frames, prompt, resolution, "video", mask, *prompts, again)
        tell(cls, habits.noted(prompt, negative_prompt), _noted(outputs[2:]))
        return io.NodeOutput(*outputs, frames.shape[0] / seconds)


NODES = [LanceEncodeEdit, LanceEncodeVideoEdit]
