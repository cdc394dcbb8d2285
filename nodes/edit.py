"""Edits: a source and an instruction → CONDITIONING and the latent to sample."""

from __future__ import annotations

import torch
from comfy_api.latest import Input, InputImpl, io

from ..lance_model import clips, language, media, tasks
from ..lance_model.sequence import Label
from .encode import advanced_prompts

IMAGE_PRESETS = [name for name in media.PRESETS if name.startswith("image")]
VIDEO_PRESETS = [name for name in media.PRESETS if name.startswith("video")]
ALWAYS = (media.KEEP, media.DEMONSTRATION)
RESOLUTION_TOOLTIP = (
    "The size that the model works in: about as many pixels as the preset, in the nearest of six aspect ratios (the "
    "edges are cropped to it), or the source's own size, cut to multiples of 16. The demonstration model knows 64x64 "
    "alone."
)
UNPAINTED = (64, 64)  # the size of the zeros that Load Image gives as the mask of a picture without transparency


def _encode(
    clip,
    vae,
    frames: torch.Tensor,
    prompt: str,
    preset: str,
    modality: str,
    mask: torch.Tensor | None,
    negative_prompt: str,
    system_prompt: str,
) -> tuple:
    if not prompt.strip():
        raise ValueError("There is no instruction. Write into prompt what to change, such as: make the circle blue.")
    source, fit = media.take(frames, preset, Label.SOURCE, vae)
    system = system_prompt.strip() or tasks.EDIT[modality]
    positive, negative = language.encode_pair(clip, prompt, negative_prompt, [source], system=system)
    latent = {"samples": source.latent}
    if mask is not None:
        latent["noise_mask"] = latent_mask(mask, fit, frames)
    return positive, negative, latent


def painted(mask: torch.Tensor | None, count: int, what: str) -> torch.Tensor | None:
    """The masks [1 or count, h, w] of so many pictures or frames (`what`); None if nothing is painted."""
    if mask is None:
        return None
    mask = mask[None].flatten(0, -3)
    if mask.shape[-2:] == UNPAINTED and not mask.any():
        return None
    if mask.shape[0] not in (1, count):
        raise ValueError(
            f"There are {mask.shape[0]} masks, but the number of {what} is {count}. Give one mask, or one for each."
        )
    return mask


def latent_mask(mask: torch.Tensor, fit: media.Fit, frames: torch.Tensor) -> torch.Tensor:
    """A mask [n, h, w] for a picture or for each frame → [1, 1, t, h, w] on the latent grid."""
    if mask.shape[-2:] != frames.shape[1:3]:
        raise ValueError(
            f"The mask is {mask.shape[-1]}x{mask.shape[-2]}, but the source is {frames.shape[2]}x{frames.shape[1]}. "
            "Give a mask of the source's size."
        )
    cells = fit.for_mask(mask)[:, 0]
    if mask.shape[0] > 1:  # a latent frame covers four frames, the first one a single one
        cells = torch.stack([chunk.amax(dim=0) for chunk in (cells[:1], *cells[1:].split(4))])
    else:
        cells = cells.expand((frames.shape[0] - 1) // 4 + 1, -1, -1)
    return cells[None, None]


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
                io.Combo.Input("resolution", options=[*IMAGE_PRESETS, *ALWAYS], tooltip=RESOLUTION_TOOLTIP),
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
        mask = painted(mask, len(media.some(image, "image")), "pictures")
        for i, picture in enumerate(image):
            own_mask = None if mask is None else mask[min(i, len(mask) - 1)][None]
            edits.append(
                _encode(clip, vae, picture[None], prompt, resolution, "image", own_mask, negative_prompt, system_prompt)
            )
        return io.NodeOutput(*(list(outputs) for outputs in zip(*edits)))


def sampled(
    video: Input.Video, sample_fps: float = media.FPS, max_seconds: float = media.MAX_SECONDS
) -> tuple[torch.Tensor, float]:
    """The frames [1 + 4k, h, w, 3] of a clip that the model sees, and the clip's length in seconds.

    Raises ValueError for a clip without frames.
    """
    # Newer versions of ComfyUI crop a clip while it is decoded, which its file knows nothing of.
    edited = hasattr(video, "has_pending_frame_edits") and video.has_pending_frame_edits()
    if isinstance(video, InputImpl.VideoFromFile) and not edited:
        return clips.read(video.get_stream_source(), video.get_active_trim_window(), sample_fps, max_seconds)
    components = video.get_components()
    if not components.images.numel():
        raise ValueError(clips.NO_FRAMES)
    rate = float(components.frame_rate)
    return media.sample_frames(components.images, rate, sample_fps, max_seconds), components.images.shape[0] / rate


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
                io.Combo.Input("resolution", options=[*VIDEO_PRESETS, *ALWAYS], tooltip=RESOLUTION_TOOLTIP),
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
                    max=60.0,
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
        frames, seconds = sampled(video, sample_fps, max_seconds)
        mask = painted(mask, len(frames), "sampled frames")
        outputs = _encode(clip, vae, frames, prompt, resolution, "video", mask, negative_prompt, system_prompt)
        return io.NodeOutput(*outputs, frames.shape[0] / seconds)


NODES = [LanceEncodeEdit, LanceEncodeVideoEdit]
