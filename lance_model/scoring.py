"""How likely answers are, by the understanding expert that would write them.

A question and an answer pass together, and the head reads the probability of each of the answer's tokens given all
before it. Further answers to the same question pass alone, over the question's keys and values.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from . import generation
from .plan import Plan
from .sequence import TEXT_VOCABULARY, Label, Segment

HEAD_TOKENS = 128  # pass the head together: each has a logit for every word of the vocabulary


def log_probabilities(language, model_patcher, request, answers: list[tuple[int, ...]]) -> list[torch.Tensor]:
    """Of each answer's ids the log-probabilities [n], float32, on the CPU, as the answer to a request.

    `language` is the CLIP's module, loaded and told its execution device by its caller; `model_patcher` the MODEL whose
    understanding expert is asked.
    """
    longest = max(map(len, answers))
    logits = 12 * min(longest, HEAD_TOKENS) * TEXT_VOCABULARY  # as the head leaves them, in float32, and exponents
    generation.load(language, model_patcher, request, 0, model_patcher.model.answer_memory(longest, 0) + logits)
    model, device = model_patcher.model, model_patcher.load_device
    transformer, dtype = model.diffusion_model, model.get_dtype_inference()
    options = {"prefetch_dynamic_vbars": model_patcher.is_dynamic()}

    question = language.question(request)
    known = question.embeddings.shape[1]
    past, end, scores = [], None, []  # the question's keys and values, and its last hidden state
    for ids in answers:
        token_ids = torch.tensor([ids], device=language.execution_device)
        embeddings = language.embed_tokens(token_ids, out_dtype=question.embeddings.dtype)
        sequence = replace(
            question,
            segments=(*question.segments, Segment(Label.TEMPLATE, ids)),
            embeddings=torch.cat([question.embeddings, embeddings], dim=1),
        )
        plan = Plan.of(sequence, len(question.segments) if past else 0)
        kept, hidden = transformer.context(
            sequence.embeddings[:, plan.und].to(device, dtype),
            None,
            plan.frequencies(transformer.head_dim, device),
            plan.runs,
            past,
            options,
            states=True,
        )
        if not past:
            past, end = [[(k[:, :known], v[:, :known]) for k, v in kept]], hidden[:, known - 1 : known]
            hidden = hidden[:, known:]
        hidden = torch.cat([end, hidden[:, :-1]], dim=1)
        scores.append(_of_tokens(language, transformer.language_model.model.norm, hidden, token_ids[0]))
    return [score.cpu() for score in scores]


def _of_tokens(language, norm, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [n] of tokens [n] after hidden states [1, n, hidden]."""
    parts = []
    for states, chosen in zip(hidden.split(HEAD_TOKENS, dim=1), ids.split(HEAD_TOKENS)):
        logits = language.lm_head(norm(states).to(language.execution_device))[0, :, :TEXT_VOCABULARY].float()
        parts.append(logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(dim=1))
    return torch.cat(parts)
