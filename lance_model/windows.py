"""Context windows: a long clip in overlapping parts, each of which sees of an edit's source what stands there in time.

ComfyUI cuts latents and masks; a sequence is cut here. A window's sequence is that of the clip cut out of the source,
which begins at time 0 as every clip did in training, and its vision tokens are exactly those of that clip, as the
encoder sees each pair of frames for itself. References and text stay whole.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from .sequence import Label, Segment, Sequence, und_slices

TIME = 2  # the dimension of frames in a latent
ELSEWHERE = "Context windows cannot go along a latent's channels. Set dim to 2, its frames."
NOT_IN_TIME = "Context windows of an edit go along its frames. Set dim to 2."
RETAINED_APART = (
    "Each context window would see a given frame, or the source's, beside the latent of another time. Retain the same "
    "frames in cond_retain_index_list and latent_retain_index_list (LTXV Context Windows does), or none at all."
)
ONE_CLIP = "Context windows make one clip at a time. Set batch_size to 1 and run several times, each with its own seed."


def check_batch(handler, shape: torch.Size) -> None:
    """ValueError for a batch of clips in windows: ComfyUI cuts the noise levels of a batch as if they were frames."""
    if handler is not None and 0 < handler.dim < len(shape) and shape[0] > 1:
        if shape[handler.dim] > handler.context_length:
            raise ValueError(ONE_CLIP)


def is_edit(sequence: Sequence) -> bool:
    return any(segment.label == Label.SOURCE for segment in sequence.segments)


def shown(window, total: int, retained: list[int]) -> list[int]:
    """Which of a latent's `total` frames ComfyUI's window shows, in order."""
    return window.get_tensor(torch.arange(total), dim=0, retain_index_list=retained).tolist()


def cut(sequence: Sequence, frames: list[int]) -> Sequence:
    """The sequence of an edit for these latent frames of its target."""
    segments, embeddings = [], []
    for i, (segment, place) in enumerate(zip(sequence.segments, und_slices(sequence.segments))):
        its = sequence.embeddings[:, place]
        if segment.label == Label.SOURCE:
            latent = segment.latent[:, :, frames]
            segment = replace(segment, grid=(len(frames), *segment.grid[1:]), latent=latent)
        elif segment.label == Label.VISION and sequence.segments[i + 1].label == Label.SOURCE:
            segment, its = _cut_vision(segment, its, frames)
        segments.append(segment)
        embeddings.append(its)
    return replace(sequence, segments=tuple(segments), embeddings=torch.cat(embeddings, dim=1), whole=sequence)


def _cut_vision(segment: Segment, embeddings: torch.Tensor, frames: list[int]) -> tuple[Segment, torch.Tensor]:
    """A vision block and its embeddings [1, 2 + t·h·w, hidden], brackets included, for these latent frames.

    The encoder sees frames 2j and 2j + 1 together. Latent frame i holds frames up to 4i, four of them, but the clip
    that begins with it begins with its last: that is pair 2i, and each later one has pairs 2i - 1 and 2i.
    """
    pairs = [2 * frames[0], *(pair for i in frames[1:] for pair in (max(2 * i - 1, 0), 2 * i))]
    inner = embeddings[:, 1:-1].unflatten(1, segment.grid[:1] + (-1,))[:, pairs].flatten(1, 2)
    whole = torch.cat([embeddings[:, :1], inner, embeddings[:, -1:]], dim=1)
    return replace(segment, grid=(len(pairs), *segment.grid[1:])), whole
