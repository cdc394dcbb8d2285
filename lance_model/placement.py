"""Edits that stay in place: what an edit was cut out of, and its result laid back over that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import scipy.ndimage
import torch

from .media import Fit, some

KEY = "lance_placement"  # of a Placement in an edit's LATENT; samplers pass it on
TOLERANCE = 0.05  # of the ratio of width to height, as upscalers round to sizes of their own


@dataclass(frozen=True, eq=False)
class Placement:
    """`source` gives the frames [n, h, w, 1 to 4] that were edited, in 0..1 or in 8 bits, one for a picture; `fit` is
    how they met the model, and `mask` [1 or n, h, w] where they may change."""

    source: Callable[[], torch.Tensor]
    fit: Fit
    mask: torch.Tensor | None = None


def paste(edited: torch.Tensor, placement: Placement, feather: float) -> torch.Tensor:
    """Edited frames [k·n, h', w', 1 to 4] of n source frames → [k·n, h, w, 3 or 4] of the source's size.

    Outside of the crop and the mask each is its source to the bit. `feather` is the width of the seam in percent of
    the shorter side. Raises ValueError for frames of another number or shape than the edit's.
    """
    source = placement.source()
    _check(some(edited, "edited"), placement, len(source))
    left, top, right, bottom = placement.fit.box
    result = _in_colour(source.repeat(len(edited) // len(source), 1, 1, 1))
    weights = [weight[top:bottom, left:right, None] for weight in _weights(placement, result, feather)]
    for i, frame in enumerate(edited):
        frame = _resize(_in_colour(frame[None].to(result.device)), right - left, bottom - top)
        _lay_over(result[i, top:bottom, left:right], frame, weights[i % len(weights)])
    return result


def _check(edited: torch.Tensor, placement: Placement, frames: int) -> None:
    if len(edited) % frames:
        raise ValueError(
            f"There are {len(edited)} edited frames, but the source has {frames}, and each goes over the one of its "
            "time. Connect all frames of the edit, as they were decoded."
        )
    (height, width), (w, h) = edited.shape[1:3], placement.fit.size
    if abs(width * h / (height * w) - 1) > TOLERANCE:
        raise ValueError(
            f"The edited picture is {width}x{height}, but what was cut out of the source has the shape of {w}x{h}. "
            "Connect the edit that was made from this latent, whole; it may be scaled."
        )


def _in_colour(images: torch.Tensor) -> torch.Tensor:
    """Images [n, h, w, 1 to 4] in 0..1 or in 8 bits → [n, h, w, 3 or 4] in 0..1; grey gets three channels."""
    images = images / 255 if images.dtype == torch.uint8 else images.float()
    if images.shape[-1] < 3:
        images = torch.cat([images[..., :1].expand(-1, -1, -1, 3), images[..., 1:]], dim=-1)
    return images


def _weights(placement: Placement, images: torch.Tensor, feather: float) -> torch.Tensor:
    """How much of the edit is seen over images [n, h, w, c], as [1 or n, h, w]: nothing outside of crop and mask, more
    and more from there inwards. The picture's own edges are no seams.
    """
    height, width = images.shape[1:3]
    left, top, right, bottom = placement.fit.box
    weights = torch.zeros(1, height, width, device=images.device)
    weights[:, top:bottom, left:right] = 1
    if placement.mask is not None:
        weights = weights * placement.mask.to(weights).clamp(0, 1)
    reach = feather / 100 * min(height, width) + 1
    for weight in weights:
        if not weight.all():  # else there is nothing to be distant from
            distance = scipy.ndimage.distance_transform_edt(weight.cpu().numpy() > 0)
            weight *= torch.from_numpy(distance).to(weight).div(reach).clamp(max=1)
    return weights


def _resize(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """An image [1, h, w, c] → [height, width, c]."""
    size = (height, width)
    resized = torch.nn.functional.interpolate(image.movedim(-1, 1), size=size, mode="bicubic", antialias=True)
    return resized.clamp(0, 1)[0].movedim(0, -1)


def _lay_over(below: torch.Tensor, above: torch.Tensor, weight: torch.Tensor) -> None:
    """Lays `above` [h, w, 3 or 4] over `below` [h, w, 3 or 4], in place, by its alpha and by `weight` [h, w, 1]."""
    weight = weight * above[..., 3:] if above.shape[-1] == 4 else weight
    if below.shape[-1] == 4:  # what lies under transparency has no part in the colour
        alpha = below[..., 3:]
        alpha.lerp_(torch.ones_like(alpha), weight)
        weight = weight / alpha.clamp(min=torch.finfo(alpha.dtype).tiny)
    below[..., :3].lerp_(above[..., :3], weight)
