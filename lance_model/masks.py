"""Masks of sources: where an edit may change a picture or a clip."""

from __future__ import annotations

import torch

from .media import Resolution

UNPAINTED = (64, 64)  # the size of the zeros that Load Image gives as the mask of a picture without transparency


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


def on_latent(mask: torch.Tensor, frames: torch.Tensor, resolution: Resolution) -> torch.Tensor:
    """A mask [n, h, w] for a picture or for each frame → [1, 1, t, h, w] on the grid of their latent."""
    height, width = frames.shape[1:3]
    if mask.shape[-2:] != (height, width):
        raise ValueError(
            f"The mask is {mask.shape[-1]}x{mask.shape[-2]}, but the source is {width}x{height}. "
            "Give a mask of the source's size."
        )
    cells = resolution.fit(width, height).for_mask(mask)[:, 0]
    if mask.shape[0] > 1:  # a latent frame covers four frames, the first one a single one
        cells = torch.stack([chunk.amax(dim=0) for chunk in (cells[:1], *cells[1:].split(4))])
    else:
        cells = cells.expand((frames.shape[0] - 1) // 4 + 1, -1, -1)
    return cells[None, None]
