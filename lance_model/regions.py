"""Where a conditioning holds and how much of a step's noise each place has, settled when a sampling run starts.

- ComfyUI's areas and masks are two-dimensional, and its areas count in eighths of a picture's pixels. Lance's latents
  have frames too, and cells of 16 pixels.
- A denoise mask that changes from step to step (Differential Diffusion) has to reach τ and the velocity as well.
- Step caches look at every eighth cell of a latent, and skip nothing where a mask keeps all of those.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import comfy.conds
import comfy.patcher_extension
import torch

from . import patches

KEY = "lance_regions"
CELL = 16  # pixels
AREA_UNIT = 8  # pixels that ComfyUI's areas count in
SMALLEST = 64 // CELL  # cells of a box around a mask, ComfyUI's smallest area
AXES = ("frame", "y", "x")

Area = tuple[int, ...]  # sizes, then starts, along frames, height and width


def _span(axis: int, start: float, size: float, cells: int) -> tuple[int, int]:
    """The whole cells, at least one, of a stretch: how many, and the first."""
    if start >= cells:
        pixels = CELL if axis else 1
        raise ValueError(
            f"An area begins outside of the picture: at {AXES[axis]} {start * pixels:g} of {cells * pixels}. "
            "Move it inside."
        )
    first = min(round(start), cells - 1)
    return max(1, min(round(start + size), cells) - first), first


def area_on_grid(area: tuple, grid: torch.Size) -> Area:
    """ComfyUI's area, in shares of the picture or in eighths of its pixels, in cells of the latent. One without frames
    covers them all.

    Raises ValueError if it lies outside of the picture.
    """
    relative = area[0] == "percentage"
    numbers = area[1:] if relative else area
    sizes, starts = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
    units = grid[-len(sizes) :] if relative else (1, AREA_UNIT / CELL, AREA_UNIT / CELL)[-len(sizes) :]
    spans = [(start * unit, size * unit) for start, size, unit in zip(starts, sizes, units)]
    spans = [(0, grid[0])] * (len(grid) - len(spans)) + spans
    placed = [_span(axis, *span, cells) for axis, (span, cells) in enumerate(zip(spans, grid))]
    return tuple(size for size, _ in placed) + tuple(first for _, first in placed)


def mask_on_grid(mask: torch.Tensor, batch: int, grid: torch.Size) -> torch.Tensor:
    """A mask [n, h, w] → [1 or batch, frames, height, width], each cell the mean of its pixels.

    One mask serves all; else there is one for each picture, each latent frame or each frame of the clip, of which a
    latent frame covers four, the first one a single one. Raises ValueError for another number.
    """
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    cells, frames = torch.nn.functional.interpolate(mask, size=grid[1:], mode="area"), grid[0]
    if len(cells) == 1 or frames == 1 and len(cells) == batch:
        return cells.expand(-1, frames, -1, -1)
    if frames > 1 and len(cells) == 1 + 4 * (frames - 1):
        cells = torch.cat([cells[:1], cells[1:].unflatten(0, (-1, 4)).amax(dim=1)])
    if frames == 1 or len(cells) != frames:
        of = f"{batch} pictures" if frames == 1 else f"{1 + 4 * (frames - 1)} frames"
        raise ValueError(f"A prompt has {len(cells)} masks for {of}. Give one mask, or one for each.")
    return cells.transpose(0, 1)


def _box(mask: torch.Tensor) -> Area:
    """The area around what a mask [n, frames, height, width] leaves, in all frames."""
    sizes, starts = [mask.shape[1]], [0]
    plane = mask.abs().amax(dim=(0, 1))
    for length, line in zip(plane.shape, (plane.amax(dim=1), plane.amax(dim=0))):
        inside = line.nonzero().flatten().tolist() or [0]
        sizes.append(max(inside[-1] + 1 - inside[0], SMALLEST))
        starts.append(inside[0])
        sizes[-1] = min(sizes[-1], length - starts[-1])
    return tuple(sizes + starts)


def _placed(cond: dict, shape: torch.Size) -> dict:
    """A prompt's conditioning with its area and its mask on the grid of a latent [B, 48, t, h, w]."""
    placed = dict(cond)
    if "area" in cond:
        placed["area"] = area_on_grid(cond["area"], shape[2:])
    if "mask" in cond:
        placed["mask"] = mask_on_grid(cond["mask"], shape[0], shape[2:])
        if placed.pop("set_area_to_bounds", False):
            placed["area"] = _box(placed["mask"])
    return placed


def _step_mask(function: Callable, guider, sigma, denoise_mask, extra_options) -> torch.Tensor:
    """The step's own denoise mask, given to the conditionings in place of the run's."""
    mask = function(sigma, denoise_mask, extra_options=extra_options)
    for conds in guider.conds.values():
        for cond in conds:
            cond["model_conds"]["denoise_mask"] = comfy.conds.CONDNoiseShape(mask[:, :1])
    return mask


def _see_every_cell(transformer_options: dict) -> None:
    """Lets a step cache, if there is one, judge the whole latent: what a mask keeps never moves."""
    cache = transformer_options.get("easycache")
    if cache is not None:
        transformer_options["easycache"] = cache = copy.copy(cache)
        cache.subsample_factor = 1


def outer_sample_wrapper(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
    """The guider's conds and model_options are copies made for this run."""
    guider, options = executor.class_obj, executor.class_obj.model_options
    guider.conds = {name: [_placed(cond, noise.shape) for cond in conds] for name, conds in guider.conds.items()}
    if patches.compare_branches(options["transformer_options"]):
        for cond in (cond for conds in guider.conds.values() for cond in conds):
            cond[patches.TOGETHER] = True
    if denoise_mask is not None:
        _see_every_cell(options["transformer_options"])
        if "denoise_mask_function" in options:
            options["denoise_mask_function"] = partial(_step_mask, options["denoise_mask_function"], guider)
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)


def add_to(patcher) -> None:
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY, outer_sample_wrapper)
