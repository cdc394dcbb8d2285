"""How consecutive segments of a sequence go through the transformer.

Derived here alone, for the context, the target, a question and training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .layer import Run
from .positions import position_ids, rotary_frequencies
from .sequence import LATENT_LABELS, Segment, Sequence, und_slices


@dataclass(frozen=True, eq=False)
class Plan:
    """Of the `segments` the attention `runs`, and where they stand.

    `und` is the slice of the sequence's understanding tokens that are theirs, `positions` [3, n] (t, h, w) are those of
    their understanding tokens and of their latents.
    """

    segments: tuple[Segment, ...]
    runs: list[Run]
    und: slice
    positions: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, sequence: Sequence, first: int | None = None, last: int | None = None) -> Plan:
        """Of the segments `first` to `last`, as in a slice; a target among the sequence's has its grid."""
        part = slice(first, last)
        segments, places = sequence.segments[part], und_slices(sequence.segments)[part]
        positions = _by_stream(segments, position_ids(sequence)[part])
        return cls(segments, _runs(segments), slice(places[0].start, places[-1].stop), positions)

    def frequencies(self, head_dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary frequencies of the understanding tokens and of the latents."""
        return tuple(rotary_frequencies(positions, head_dim, device) for positions in self.positions)


def _runs(segments: tuple[Segment, ...]) -> list[Run]:
    """Neighbouring text is one causal run, a block is a full one."""
    out: list[Run] = []
    for segment in segments:
        if segment.is_text and out and out[-1].causal:
            out[-1] = Run(True, out[-1].und + len(segment), 0)
        elif len(segment):
            out.append(Run(segment.is_text, segment.embedded, segment.latents))
    return out


def _by_stream(segments: tuple[Segment, ...], positions: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    und, gen = [], [torch.empty(3, 0, dtype=torch.int64)]
    for segment, p in zip(segments, positions):
        if segment.label in LATENT_LABELS:
            und.append(p[:, [0, -1]])
            gen.append(p[:, 1:-1])
        else:
            und.append(p)
    return torch.cat(und, dim=1), torch.cat(gen, dim=1)
