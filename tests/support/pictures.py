"""Pictures and clips of noise."""

from fractions import Fraction

import torch
from comfy_api.latest import InputImpl, Types


def picture(width: int = 96, height: int = 64, channels: int = 3, n: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, height, width, channels, generator=torch.Generator().manual_seed(seed))


def clip_of(frames: int, fps: int = 12, width: int = 64, height: int = 64):
    return InputImpl.VideoFromComponents(
        Types.VideoComponents(images=picture(width, height, n=frames), frame_rate=Fraction(fps))
    )
