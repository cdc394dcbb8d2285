"""Qwen2.5-VL's vision encoder, with attention over all equal windows in one call.

Weights and layers are ComfyUI's. Tokens are kept window by window, windows of one shape behind each other: the whole
ones, then those that the right and the lower edge cut. A layer makes one call for each of these shapes, at most four,
however many windows and frames there are; where all windows are whole, nothing is copied.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn as nn
from comfy.ldm.modules.attention import optimized_attention_for_device
from comfy.quant_ops import ck
from comfy.text_encoders.qwen_vl import Qwen2VLVisionTransformer

from .layer import rotate
from .positions import rotation
from .sequence import Grid


class Windows(NamedTuple):
    """Windows of one shape, in all frames: how many, and of how many patches each."""

    count: int
    patches: int


class VisionEncoder(Qwen2VLVisionTransformer):
    """Patches [t·h·w, 1176] of a grid (t, h, w) → embeddings [t·h·w / 4, hidden of the language model].

    Frames are encoded apart from each other: in the layers of `fullatt_block_indexes` a patch attends to its frame,
    elsewhere to its window of 112 pixels.
    """

    def forward(self, patches: torch.Tensor, grid: Grid) -> torch.Tensor:
        merge = self.spatial_merge_size
        order, shapes = windows(grid, merge, self.window_size // self.patch_size // merge)
        back = order.argsort().to(patches.device)
        order = order.to(patches.device)
        frequencies = self.frequencies(grid, patches.device)[:, order].flatten(1, 2)
        x = self.patch_embed(patches)
        x = x.unflatten(0, (-1, merge * merge))[order].flatten(0, 1)
        for i, block in enumerate(self.blocks):
            frames = grid[0] if i in self.fullatt_block_indexes else None
            x = x + attend(block.attn, block.norm1(x), frequencies, shapes, frames)
            x = x + block.mlp(block.norm2(x))
        return self.merger(x)[back]

    def frequencies(self, grid: Grid, device: torch.device) -> torch.Tensor:
        """Rotation matrices [1, t·h·w / 4, 4, 1, head_dim / 2, 2, 2], merge group by merge group.

        One half of them turns with the row, the other with the column.
        """
        t, h, w = grid
        merge, quarter = self.spatial_merge_size, self.blocks[0].attn.head_dim // 4
        inverse = 10000.0 ** -(torch.arange(quarter, dtype=torch.float32) / quarter)
        rows, columns = (torch.outer(torch.arange(n, dtype=torch.float32), inverse) for n in (h, w))
        angles = torch.cat([rows[:, None].expand(h, w, -1), columns.expand(h, w, -1)], dim=-1)
        angles = angles.unflatten(1, (w // merge, merge)).unflatten(0, (h // merge, merge)).transpose(1, 2)
        angles = angles.reshape(-1, merge * merge, 2 * quarter).repeat(t, 1, 1)
        return rotation(angles.to(device))


def windows(grid: Grid, merge: int, side: int) -> tuple[torch.Tensor, list[Windows]]:
    """In which order merge groups [t·h·w / merge²] are taken, and the shapes of windows that this gives.

    `side` is that of a window, in merge groups. Frames are outermost within a shape.
    """
    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    index = torch.arange(t * h * w).view(t, h, w)
    order, shapes = [], []
    for top, bottom in _cuts(h, side):
        for left, right in _cuts(w, side):
            a, b = min(side, bottom - top), min(side, right - left)
            part = index[:, top:bottom, left:right].unflatten(2, (-1, b)).unflatten(1, (-1, a)).transpose(2, 3)
            order.append(part.flatten())
            shapes.append(Windows(part.numel() // (a * b), a * b * merge * merge))
    return torch.cat(order), shapes


def _cuts(length: int, side: int) -> list[tuple[int, int]]:
    """Where the whole windows are, and the one that the edge cuts."""
    whole = length // side * side
    return [(start, end) for start, end in ((0, whole), (whole, length)) if start < end]


def attend(
    attn: nn.Module, x: torch.Tensor, frequencies: torch.Tensor, shapes: list[Windows], frames: int | None
) -> torch.Tensor:
    """Self-attention [n, hidden] within windows, or within each of `frames` frames."""
    qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, attn.head_dim))
    turned, values = qkv[:, :2].flatten(1, 2)[None], qkv[:, 2]
    # The fused kernel has no backward.
    turned = rotate(turned, frequencies) if turned.requires_grad else ck.apply_rope_split_half1(turned, frequencies)
    lengths = [shape.count * shape.patches for shape in shapes]
    queries, keys = turned[0].unflatten(1, (2, -1)).unbind(1)
    parts = zip(*(part.split(lengths) for part in (queries, keys, values)))
    attention = optimized_attention_for_device(x.device, mask=False, small_input=True)

    def call(*of_heads: torch.Tensor) -> torch.Tensor:
        return attention(*(part.transpose(1, 2) for part in of_heads), attn.num_heads, skip_reshape=True)

    if frames is None:
        out = [
            call(*(part.unflatten(0, (shape.count, -1)) for part in those)).flatten(0, 1)
            for shape, those in zip(shapes, parts)
        ]
    else:
        by_frame = zip(*([part.unflatten(0, (frames, -1)) for part in those] for those in parts))
        whole = call(*(_joined(pieces, dim=1) for pieces in by_frame))
        out = [piece.flatten(0, 1) for piece in whole.split([length // frames for length in lengths], dim=1)]
    return attn.proj(_joined(out, dim=0))


def _joined(pieces, dim: int) -> torch.Tensor:
    """Pieces behind each other; a single one without a copy."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)
