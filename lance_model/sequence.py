"""The interleaved sequence that Lance reads, as plain data.

    <|im_start|>system\\n{system}<|im_end|>\\n
    <|im_start|>user\\n{media blocks}{prompt}<|im_end|>\\n
    <|im_start|>assistant\\n{target}

A sequence is an ordered list of segments: text, or media blocks of one token per latent position or merged vision patch
between two bracket tokens. Text, brackets and vision tokens go through the understanding expert; latents go through the
generation expert.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from itertools import accumulate

import torch

IM_START, IM_END = 151644, 151645
VISION_START, VISION_END, VIDEO_PAD = 151652, 151653, 151656
TEXT_VOCABULARY = 151665  # rows of the embedding from here on are no tokens

Grid = tuple[int, int, int]

CONDITIONING = "lance_sequence"  # the sequence's place in a CONDITIONING


class Label(IntEnum):
    """Modality labels, numbered as in the model's training data."""

    TEMPLATE = -1
    PROMPT = 0
    TARGET = 1
    SOURCE = 2
    REFERENCE = 3
    VISION = 4


LATENT_LABELS = (Label.TARGET, Label.SOURCE, Label.REFERENCE)
MEDIA_LABELS = (Label.SOURCE, Label.REFERENCE, Label.VISION)


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of the sequence with one label.

    Text has `ids`. A block has the `grid` (frames, height, width) of the tokens between its brackets, in latent units
    or in merged vision patches, and a source or reference its `latent` [1, 48, t, h, w] as the VAE returned it.
    """

    label: Label
    ids: tuple[int, ...] = ()
    grid: Grid | None = None
    latent: torch.Tensor | None = None

    @property
    def is_text(self) -> bool:
        return self.label in (Label.TEMPLATE, Label.PROMPT)

    @property
    def inner(self) -> int:
        """Number of tokens between the brackets of a block; 0 for text."""
        return 0 if self.is_text else self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def latents(self) -> int:
        """Number of tokens that go through the generation expert."""
        return self.inner if self.label in LATENT_LABELS else 0

    @property
    def embedded(self) -> int:
        """Number of tokens that go through the understanding expert."""
        return len(self) - self.latents

    def __len__(self) -> int:
        return len(self.ids) if self.is_text else self.inner + 2

    def token_ids(self) -> tuple[int, ...]:
        return self.ids if self.is_text else (VISION_START, *[VIDEO_PAD] * self.inner, VISION_END)

    def und_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that go through the understanding expert."""
        return (VISION_START, VISION_END) if self.label in LATENT_LABELS else self.token_ids()

    def same(self, other: Segment) -> bool:
        """Whether both stand for the same tokens, embeddings of vision tokens aside."""
        if (self.label, self.ids, self.grid) != (other.label, other.ids, other.grid):
            return False
        return self.latent is other.latent or (self.latent is not None and torch.equal(self.latent, other.latent))


def und_slices(segments: Collection[Segment]) -> list[slice]:
    """Where each segment's understanding tokens stand among those of all."""
    bounds = list(accumulate((segment.embedded for segment in segments), initial=0))
    return [slice(start, end) for start, end in zip(bounds, bounds[1:])]


def vision_slices(segments: Collection[Segment]) -> list[slice]:
    """Where the tokens of each vision block, brackets aside, stand among all understanding tokens."""
    places = zip(segments, und_slices(segments))
    return [slice(place.start + 1, place.stop - 1) for segment, place in places if segment.label == Label.VISION]


@dataclass(frozen=True, eq=False)
class Sequence:
    """Segments and the `embeddings` [1, n, hidden] of their n understanding tokens, in order.

    The target, where there is one, is the last segment and has no grid until sampling starts. `prefix` counts
    the segments before the prompt: the conditional and the unconditional branch share them. Without `mape` positions
    are plain mRoPE. `gap` is how many positions stay free between the prompt, or its place, and the template after it.
    A context window's sequence names the `whole` that it was cut from.
    """

    segments: tuple[Segment, ...]
    embeddings: torch.Tensor | None = None
    prefix: int = 0
    mape: bool = True
    gap: int = 0
    whole: Sequence | None = None

    @property
    def context(self) -> tuple[Segment, ...]:
        """All segments that do not depend on the noise."""
        return tuple(s for s in self.segments if s.label != Label.TARGET)

    def with_target(self, grid: Grid) -> Sequence:
        target = replace(self.segments[-1], grid=tuple(grid))
        return replace(self, segments=(*self.segments[:-1], target))

    def without_target(self) -> Sequence:
        return replace(self, segments=self.context)

    @property
    def prompt_length(self) -> int:
        """In tokens."""
        return sum(len(segment) for segment in self.segments if segment.label == Label.PROMPT)

    @cached_property
    def without_media(self) -> Sequence:
        """The sequence without its sources and references; itself, if there are none."""
        return self._without(MEDIA_LABELS)

    @cached_property
    def without_prompt(self) -> Sequence:
        """The sequence of an empty prompt; itself, if it is that."""
        return self._without((Label.PROMPT,))

    def _without(self, labels: Collection[Label]) -> Sequence:
        kept = [i for i, segment in enumerate(self.segments) if segment.label not in labels]
        if len(kept) == len(self.segments):
            return self
        places = und_slices(self.segments)
        return replace(
            self,
            segments=tuple(self.segments[i] for i in kept),
            embeddings=torch.cat([self.embeddings[:, places[i]] for i in kept], dim=1),
            prefix=sum(i < self.prefix for i in kept),
        )

    def token_ids(self) -> list[int]:
        return [i for segment in self.segments for i in segment.token_ids()]

    def labels(self) -> list[int]:
        return [int(segment.label) for segment in self.segments for _ in range(len(segment))]

    def prefix_embeddings(self) -> torch.Tensor:
        return self.embeddings[:, : sum(s.embedded for s in self.segments[: self.prefix])]

    def same_prefix(self, other: Sequence) -> bool:
        """Whether keys and values of the prefix are the same in both sequences."""
        if self.prefix != other.prefix or self.mape != other.mape:
            return False
        pairs = zip(self.segments[: self.prefix], other.segments[: other.prefix])
        return all(a.same(b) for a, b in pairs) and torch.equal(self.prefix_embeddings(), other.prefix_embeddings())


def read(conditioning: dict) -> Sequence | None:
    """The sequence in a conditioning as it is sampled. Zeroed out, it is that of an empty prompt."""
    sequence = conditioning.get(CONDITIONING)
    return sequence if sequence is None or conditioning["cross_attn"].any() else sequence.without_prompt
