"""How consecutive segments of a sequence go through the transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..lance_model.context import runs
from ..lance_model.layer import Run
from ..lance_model.positions import position_ids, stream_frequencies
from ..lance_model.sequence import Label, Segment, Sequence


@dataclass(frozen=True)
class Plan:
    """Of the `segments` the attention `runs`, the slice of the sequence's understanding tokens that are theirs, and
    their `positions` [3, n]."""

    segments: tuple[Segment, ...]
    runs: list[Run]
    und: slice
    positions: list[torch.Tensor]

    @classmethod
    def of(cls, sequence: Sequence, first: int | None = None, last: int | None = None) -> Plan:
        part = slice(first, last)
        segments, places = sequence.segments[part], und_slices(sequence.segments)[part]
        und = slice(places[0].start, places[-1].stop)
        return cls(segments, runs(segments), und, position_ids(sequence)[part])

    def frequencies(self, head_dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return stream_frequencies(self.segments, self.positions, head_dim, device)


def und_slices(segments: tuple[Segment, ...]) -> list[slice]:
    out, start = [], 0
    for segment in segments:
        out.append(slice(start, start + segment.embedded))
        start += segment.embedded
    return out


def vision_slices(segments: tuple[Segment, ...]) -> list[slice]:
    """Where the tokens of each vision block, brackets aside, stand among all understanding tokens."""
    places = zip(segments, und_slices(segments))
    return [slice(place.start + 1, place.stop - 1) for segment, place in places if segment.label == Label.VISION]


def und_ids(segment: Segment) -> tuple[int, ...]:
    """Ids of the tokens that go through the understanding expert."""
    ids = segment.token_ids()
    return ids[:: len(ids) - 1] if segment.latents else ids
