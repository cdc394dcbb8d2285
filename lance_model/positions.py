"""Position ids (mRoPE, then MaPE), rotary frequencies and the latent position table."""

from __future__ import annotations

import torch

from .sequence import Grid, Label, Sequence

FRAME_STEP = 2  # tokens_per_second of Qwen2.5-VL, for vision and latent blocks alike
MODALITY_OFFSET = {Label.VISION: 1000, Label.REFERENCE: 2000}
ROPE_THETA = 1e6


def block_positions(grid: Grid, start: int) -> torch.Tensor:
    """Positions [3, 2 + t·h·w] of a block whose opening bracket stands at `start`, brackets included."""
    t, h, w = (torch.arange(n) for n in grid)
    inner = torch.stack(torch.meshgrid(t * FRAME_STEP, h, w, indexing="ij")).flatten(1) + start + 1
    end = inner.max() + 1
    return torch.cat([torch.full((3, 1), start), inner, end.expand(3, 1)], dim=1)


def position_ids(sequence: Sequence) -> list[torch.Tensor]:
    """Positions [3, n] (t, h, w) of each segment, int64.

    Qwen2.5-VL's mRoPE: text advances all axes by one, a block continues at the largest position so far plus one. MaPE
    (Lance, section 3.2) then moves whole modalities along t, and lets the target of an edit stand where its source
    stands. The sequence's gap moves the template after the prompt alone, and not what comes after that.
    """
    positions, start = [], 0
    for i, segment in enumerate(sequence.segments):
        if segment.is_text:
            p = torch.arange(start, start + len(segment)).expand(3, -1)
        else:
            p = block_positions(segment.grid, start)
        after_prompt = segment.label == Label.TEMPLATE and i >= sequence.prefix
        positions.append(p + sequence.gap if after_prompt else p)
        start = int(p.max()) + 1 if p.numel() else start
    return _mape(sequence, positions) if sequence.mape else positions


def _mape(sequence: Sequence, positions: list[torch.Tensor]) -> list[torch.Tensor]:
    shifts = {}
    for segment, p in zip(sequence.segments, positions):
        if segment.label in MODALITY_OFFSET:
            shifts.setdefault(segment.label, MODALITY_OFFSET[segment.label] - p[0, 0])
    shifted = []
    for segment, p in zip(sequence.segments, positions):
        shift = shifts.get(segment.label, 0)
        shifted.append(torch.stack([p[0] + shift, p[1], p[2]]))

    source = [p for s, p in zip(sequence.segments, shifted) if s.label == Label.SOURCE]
    target = sequence.segments[-1]
    if source and target.label == Label.TARGET and sum(p.shape[1] for p in source) == len(target):
        shifted[-1] = torch.cat(source, dim=1)
    return shifted


def rotary_frequencies(positions: torch.Tensor, head_dim: int, device: torch.device) -> torch.Tensor:
    """Rotation matrices [1, n, 1, head_dim / 2, 2, 2] in float32 for positions [3, n].

    The frequencies are dealt to the axes in sections of head_dim/8 (t), 3·head_dim/16 (h) and 3·head_dim/16 (w).
    """
    half = head_dim // 2
    sections = torch.tensor([head_dim // 8, 3 * head_dim // 16, 3 * head_dim // 16])
    axis = torch.arange(3).repeat_interleave(sections)
    inverse = ROPE_THETA ** -(torch.arange(half, dtype=torch.float32) / half)
    return rotation((positions.float()[axis].T * inverse).to(device))


def rotation(angles: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [1, ..., 1, n, 2, 2] of angles [..., n], one for each pair of a head's channels."""
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))[None, ..., None, :, :, :]


def latent_position_tables(grid: Grid, hidden: int, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Tables [t, d], [h, d] and [w, hidden - 2d] of the fixed sin-cos embedding; a token adds one row of each, side by
    side.

    Per axis [sin(p ω), cos(p ω)] with ω_j = 10000^(-j / (D / 2)), d the even part of hidden // 3, computed in float64.
    """
    third = hidden // 3 // 2 * 2
    tables = []
    for length, dim in zip(grid, (third, third, hidden - 2 * third)):
        omega = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
        angles = torch.outer(torch.arange(length, dtype=torch.float64), omega)
        tables.append(torch.cat([angles.sin(), angles.cos()], dim=1).to(device, dtype))
    return tables
