"""What the model is trained for: the next token of an answer, and the velocity of a noisy target.

Batches hold samples alike in shape, so that one sequence stands for all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..lance_model import media
from ..lance_model.language import Request
from ..lance_model.plan import Plan
from ..lance_model.positions import latent_position_tables
from ..lance_model.sequence import Label, Segment, Sequence, vision_slices
from ..lance_model.transformer import LanceTransformer
from .data import Pools, Sample
from .model import Trainee
from .vision import embeddings

SHIFT = 2.0  # of the timesteps
NOISES = 2  # noisy targets for each context, which is computed once
UNUSED_ROWS = math.log(150_000)  # rows of the vocabulary that are left zero compete with logit 0 each


def loss_of(trainee: Trainee, pools: Pools, batch: list[Sample], drop_prompt: bool) -> torch.Tensor:
    if batch[0].target is None:
        return text_loss(trainee, pools, batch)
    return flow_loss(trainee, pools, batch, drop_prompt)


def text_loss(trainee: Trainee, pools: Pools, batch: list[Sample]) -> torch.Tensor:
    """Next-token cross-entropy on the answers; long ones weigh less a token than short ones."""
    first, count = batch[0], len(batch)
    tokens = embed(trainee, pools, batch, first.prompt, Segment(Label.TEMPLATE, first.answer_ids))
    length = len(first.answer_ids)
    _, states = context(trainee, tokens, Plan.of(tokens.sequence, 1), states=True)
    states = trainee.transformer.language_model.model.norm(states[:, -length - 1 : -1])
    logits = trainee.language.lm_head(states)
    logits = torch.cat([logits, torch.full_like(logits[..., :1], UNUSED_ROWS)], dim=-1)
    answers = torch.tensor([sample.answer_ids for sample in batch], device=logits.device)
    losses = F.cross_entropy(logits.flatten(0, 1), trainee.rows[answers].flatten(), reduction="none")
    return losses.sum() / (count * math.sqrt(length)) / 3


def flow_loss(trainee: Trainee, pools: Pools, batch: list[Sample], drop_prompt: bool) -> torch.Tensor:
    """Flow matching on the targets' latents: squared error of the velocity that leads from them to noise."""
    first = batch[0]
    clean = pools.target_latents(batch)
    grid, device = tuple(clean.shape[2:]), clean.device
    prompt = "" if drop_prompt else first.prompt
    tokens = embed(trainee, pools, batch, prompt, Segment(Label.TARGET, grid=grid))
    branch = Branch.of(trainee, tokens)

    def several(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(NOISES, dim=0)

    clean = several(clean)
    t = timesteps(len(clean), device)
    noise = torch.randn_like(clean)
    free = torch.ones_like(clean[:1, :1])  # where there is noise
    if first.given:
        free[:, :, 0] = 0
        clean = torch.cat([several(pools.given_latents(batch)), clean[:, :, 1:]], dim=2)
    x = clean + free * t[:, None, None, None, None] * (noise - clean)
    velocity = branch.velocity(trainee.transformer, x, t[:, None] * free.flatten(1))
    error = (velocity - (noise - clean)) ** 2 * free
    return error.sum() / free.expand_as(clean).sum()


def timesteps(count: int, device: torch.device) -> torch.Tensor:
    """Of logit-normal distribution, shifted towards noise."""
    t = torch.randn(count, device=device).sigmoid()
    return SHIFT * t / (1 + (SHIFT - 1) * t)


@dataclass
class Tokens:
    """A batch as the transformer takes it: the sequence of its first sample, the understanding tokens [B, n, hidden] of
    all segments and, if there are any, those of the sources' latents [B, m, hidden]."""

    sequence: Sequence
    und: torch.Tensor
    gen: torch.Tensor | None


@dataclass
class Branch:
    """What targets are made from: keys and values of their context, the `brackets` [B, 2, hidden] around them, and
    where those and the latents stand."""

    known: list
    brackets: torch.Tensor
    frequencies: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, trainee: Trainee, tokens: Tokens) -> Branch:
        """Of a sequence that ends with the target."""
        known, _ = context(trainee, tokens, Plan.of(tokens.sequence, 1, -1))
        end = Plan.of(tokens.sequence, -1)
        brackets = tokens.und[:, end.und]
        return cls(known, brackets, end.frequencies(trainee.transformer.head_dim, brackets.device))

    def velocity(self, transformer: LanceTransformer, x: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        """Of latents x [B · n, 48, t, h, w], n in a row of each context, at τ [B · n, t · h · w]."""
        count, grid = len(x) // len(self.brackets), tuple(x.shape[2:])

        def several(x: torch.Tensor) -> torch.Tensor:
            return x.repeat_interleave(count, dim=0)

        past = [[[tuple(map(several, kv)) for kv in piece] for piece in self.known]]
        tables = latent_position_tables(grid, transformer.hidden, x.device, torch.float32)
        return transformer._forward(x, tau, {}, several(self.brackets), self.frequencies, tables, past)


def embed(trainee: Trainee, pools: Pools, batch: list[Sample], prompt: str, last: Segment) -> Tokens:
    """`last` is the target or the answer."""
    first, sources = batch[0], pools.source_latents(batch)
    vision_grid = (5, 4, 4) if first.clip_source else (1, 4, 4)
    shown = tuple(media.Medium(None, vision_grid, x[:1] if first.label else None, first.label) for x in sources)
    request = Request(prompt, first.system, media=shown)
    segments, prefix = trainee.language.tokenizer.segments(request, first.system)
    sequence = Sequence((*segments, last), None, prefix, mape=last.label == Label.TARGET)
    und = understanding_tokens(trainee, pools, batch, sequence)
    gen = torch.cat([clean_tokens(trainee, x) for x in sources], dim=1) if first.label and sources else None
    return Tokens(sequence, und, gen)


def understanding_tokens(trainee: Trainee, pools: Pools, batch: list[Sample], sequence: Sequence) -> torch.Tensor:
    """Ids first, then what the vision encoder sees."""
    columns, (*_, last) = [], sequence.segments
    for segment in sequence.segments:
        if segment.label == Label.PROMPT:
            rows = [sample.prompt_ids for sample in batch]
        elif segment is last and segment.is_text:
            rows = [sample.answer_ids for sample in batch]
        else:
            rows = [segment.und_ids()] * len(batch)
        columns.append(torch.tensor(rows))
    und = trainee.embed(torch.cat(columns, dim=1).to(pools.latents.device))
    for place, pixels in zip(vision_slices(sequence.segments), pools.source_pixels(batch)):
        seen = embeddings(trainee.language.visual, pixels)
        und = torch.cat([und[:, : place.start], seen, und[:, place.stop :]], dim=1)
    return und


def clean_tokens(trainee: Trainee, latents: torch.Tensor) -> torch.Tensor:
    """Tokens [B, m, hidden] of latents without noise."""
    transformer, device = trainee.transformer, latents.device
    tables = latent_position_tables(tuple(latents.shape[2:]), transformer.hidden, device, torch.float32)
    return transformer.embed_latents(latents, torch.zeros(len(latents), device=device), tables)


def context(trainee: Trainee, tokens: Tokens, rest: Plan, states: bool = False) -> tuple[list, torch.Tensor]:
    """Keys and values of the system prompt, which is the same for all, and of the `rest`; and the latter's states."""
    transformer, und = trainee.transformer, tokens.und
    lead = Plan.of(tokens.sequence, 0, 1)

    def frequencies(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
        return plan.frequencies(transformer.head_dim, und.device)

    system, _ = transformer.context(und[:1, lead.und], None, frequencies(lead), lead.runs)
    system = [tuple(x.expand(len(und), -1, -1, -1) for x in kv) for kv in system]
    known, states = transformer.context(
        und[:, rest.und], tokens.gen, frequencies(rest), rest.runs, [system], states=states
    )
    return [system, known], states
