"""Pictures and clips as Lance was trained on them: crops, frame sampling, vision patches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy
import torch
from PIL import Image

from .sequence import Grid, Label, Segment

STRIDE = 16  # pixels a latent
PATCH, MERGE, PATCH_FRAMES = 14, 2, 2
VISION_STRIDE = PATCH * MERGE
VISION_MEAN = (0.48145466, 0.4578275, 0.40821073)
VISION_STD = (0.26862954, 0.26130258, 0.27577711)

FPS = 12
MAX_SECONDS = 6.0


def crop_box(width: int, height: int, ratio: float) -> tuple[int, int, int, int]:
    """The largest centred box (left, top, right, bottom) of that ratio."""
    # A ratio that is the picture's own but for rounding crops nothing.
    w, h = round(math.sqrt(width * height * ratio)), round(math.sqrt(width * height / ratio))
    if w > width or h > height:
        w, h = (width, round(width / ratio)) if width / height < ratio else (round(height * ratio), height)
    w, h = max(1, w), max(1, h)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def some(images: torch.Tensor, name: str) -> torch.Tensor:
    """The images; ValueError if there are none. `name` is the input's."""
    if not images.numel():
        raise ValueError(f"{name} holds no picture: it is an empty batch. Connect at least one.")
    return images


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images in 0..1, or in 8 bits already → in 8 bits."""
    if images.dtype == torch.uint8:
        return images
    return images.float().nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8)


def to_pictures(images: torch.Tensor) -> list[Image.Image]:
    """ComfyUI images [n, h, w, 1 to 4] in 0..1, or in 8 bits → 8-bit RGB pictures, alpha laid over white."""
    pictures = []
    for image in images:
        pixels = to_bytes(image).cpu()
        if pixels.shape[-1] in (1, 2):  # grey, without or with alpha
            pixels = torch.cat([pixels[..., :1].expand(*pixels.shape[:-1], 3), pixels[..., 1:]], dim=-1)
        picture = Image.fromarray(pixels.contiguous().numpy())
        if picture.mode == "RGBA":
            white = Image.new("RGB", picture.size, (255, 255, 255))
            white.paste(picture, mask=picture.split()[3])
            picture = white
        pictures.append(picture)
    return pictures


def to_images(pictures: list[Image.Image]) -> torch.Tensor:
    """8-bit RGB pictures → ComfyUI images [n, h, w, 3] in 0..1."""
    raw = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).view(p.height, p.width, 3) for p in pictures]
    return torch.stack(raw).float() / 255


@dataclass(frozen=True)
class Fit:
    """How a picture of a given size meets the model: the box that is cut out, and the sizes that it is brought to."""

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    vision_box: tuple[int, int, int, int]
    vision_size: tuple[int, int]

    @classmethod
    def into(cls, width: int, height: int, size: tuple[int, int], vision_size: tuple[int, int] | None = None) -> Fit:
        """A picture that has to fill a given size, and another for the vision encoder, unless that does not see it."""
        vision_size = vision_size or size
        box, vision_box = (crop_box(width, height, w / h) for w, h in (size, vision_size))
        return cls(box, size, vision_box, vision_size)

    def for_vae(self, pictures: list[Image.Image]) -> torch.Tensor:
        """Images [n, h, w, 3] in 0..1 for VAE.encode."""
        return to_images([_resize(p, self.box, self.size) for p in pictures])

    def for_vision(self, pictures: list[Image.Image]) -> torch.Tensor:
        """Images [n, h, w, 3] in 0..1 for `patches`, cut to whole merge groups."""
        images = to_images([_resize(p, self.vision_box, self.vision_size) for p in pictures])
        height, width = (n // VISION_STRIDE * VISION_STRIDE for n in images.shape[1:3])
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        return images[:, top : top + height, left : left + width]

    def for_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask [n, h, w] of the picture → [n, 1, h, w] on the latent grid, each cell the mean of its pixels."""
        left, top, right, bottom = self.box
        cells = (self.size[1] // STRIDE, self.size[0] // STRIDE)
        return torch.nn.functional.interpolate(mask[:, None, top:bottom, left:right].float(), size=cells, mode="area")


def _resize(picture: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    return picture.crop(box).resize(size, Image.Resampling.BICUBIC)


class Resolution(Protocol):
    """A rule by which pictures of any size are brought to sizes that the model knows."""

    def fit(self, width: int, height: int) -> Fit: ...


@dataclass(frozen=True, eq=False)
class Medium:
    """A picture or clip for a sequence: what the vision encoder is to see, and for generation its clean latent.

    `patches` [t·h·w, 1176] over `grid` (t, h, w) become `embeddings` [t·h·w / 4, hidden]; `label` is that of the
    latent.
    """

    patches: torch.Tensor
    grid: Grid
    latent: torch.Tensor | None = None
    label: Label | None = None
    embeddings: torch.Tensor | None = None

    def segments(self) -> list[Segment]:
        t, h, w = self.grid
        blocks = [Segment(Label.VISION, grid=(t, h // MERGE, w // MERGE))]
        if self.latent is not None:
            blocks.append(Segment(self.label, grid=tuple(self.latent.shape[2:]), latent=self.latent))
        return blocks


def preprocess(images: torch.Tensor, resolution: Resolution, label: Label | None = None, vae=None) -> Medium:
    """A picture [1, h, w, c] or the frames of a clip [n, h, w, c], prepared for the vision encoder.

    With a `label`, that of an edit's source or of a reference, they are encoded by `vae` as well, ComfyUI's VAE for
    Wan 2.2 latents; raises ValueError for another.
    """
    fit, pictures = resolution.fit(images.shape[2], images.shape[1]), to_pictures(images)
    latent = encode(vae, fit.for_vae(pictures)) if label is not None else None
    return Medium(*patches(fit.for_vision(pictures)), latent, label)


def encode(vae, images: torch.Tensor) -> torch.Tensor:
    """Frames [1 + 4k, h, w, 3] → latent [1, 48, 1 + k, h / 16, w / 16]."""
    channels = getattr(vae, "latent_channels", "none")
    if channels != 48:
        raise ValueError(
            f"Lance works in the latent space of Wan 2.2's VAE (48 channels), but this VAE has {channels}. "
            "Connect the VAE output of Load Lance."
        )
    return vae.encode(images)


def sample_frames(
    frames: torch.Tensor, fps: float, sample_fps: float = FPS, max_seconds: float = MAX_SECONDS
) -> torch.Tensor:
    """The frames [1 + 4k, h, w, c] of a clip [n, h, w, c] that the model sees."""
    return frames[frame_indices(frames.shape[0], fps, sample_fps, max_seconds)]


def frame_indices(total: int, fps: float, sample_fps: float = FPS, max_seconds: float = MAX_SECONDS) -> list[int]:
    """Which of a clip's frames the model sees: 1 + 4k of them, spread over the whole clip.

    A clip longer than `max_seconds` is seen as often as one of that length.
    """
    frames = frame_count(total / max(1, round(fps)), sample_fps, max_seconds)
    return numpy.linspace(0, total - 1, frames, dtype=int).tolist()


def frame_count(seconds: float, sample_fps: float = FPS, max_seconds: float = MAX_SECONDS) -> int:
    """How many frames of a clip the model sees: 1 + 4k."""
    n = round(min(seconds, max_seconds) * sample_fps)
    return max(1, 4 * (n // 4) + 1 if n % 4 else n - 3)


def patches(images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Images [n, h, w, 3] in 0..1 → patches [t·h·w, 1176] in merge-group order and their grid (t, h, w).

    A single picture counts as two equal frames; an odd number of frames repeats the last one.
    """
    x = (images - torch.tensor(VISION_MEAN)) / torch.tensor(VISION_STD)
    if x.shape[0] % PATCH_FRAMES:
        x = torch.cat([x, x[-1:]])
    t, h, w = x.shape[0] // PATCH_FRAMES, x.shape[1] // PATCH, x.shape[2] // PATCH
    x = x.movedim(-1, 1).reshape(t, PATCH_FRAMES, 3, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return x.reshape(t * h * w, 3 * PATCH_FRAMES * PATCH * PATCH), (t, h, w)
