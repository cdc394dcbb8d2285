"""What is trained: the plugin's transformer and language modules, over the used rows of the vocabulary alone."""

from __future__ import annotations

import math

import comfy.ops
import torch

from ..lance_model import media, nano, tasks
from ..lance_model.config import TransformerConfig, VisionConfig
from ..lance_model.language import LanceLanguage, LanceTokenizer, Request
from ..lance_model.layer import GEN
from ..lance_model.sequence import Label
from ..lance_model.transformer import LanceTransformer
from .data import Sample

TRANSFORMER = TransformerConfig(hidden=160, layers=6, inner=320, heads=5, kv_heads=1, head_dim=32)
VISION = VisionConfig(hidden=96, layers=3, inner=192, out_hidden=160, heads=3, full_attention=(2,))


class Trainee(torch.nn.Module):
    """`rows` are the vocabulary's that it has. With `one_expert` the modules of the understanding expert are also those
    of the generation expert."""

    def __init__(
        self,
        rows: list[int],
        tokenizer: LanceTokenizer,
        transformer: TransformerConfig = TRANSFORMER,
        one_expert: bool = False,
    ):
        super().__init__()
        operations = comfy.ops.disable_weight_init
        self.transformer = LanceTransformer(**vars(transformer), dtype=torch.float32, operations=operations)
        self.language = LanceLanguage(
            transformer.hidden, len(rows), VISION, tokenizer, dtype=torch.float32, operations=operations
        )
        self.register_buffer("rows", torch.full((nano.VOCABULARY,), -1), persistent=False)
        self.rows[rows] = torch.arange(len(rows))
        for name, weight in self.named_parameters():
            initialize(name, weight)
        if one_expert:
            tie_experts(self.transformer)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.language.embed_tokens(self.rows[ids])


def tie_experts(transformer: LanceTransformer) -> None:
    for module in list(transformer.modules()):
        for name, _ in list(module.named_children()):
            if name.endswith(GEN):
                setattr(module, name, getattr(module, name.removesuffix(GEN)))


def initialize(name: str, weight: torch.Tensor) -> None:
    if weight.ndim == 1:
        torch.nn.init.constant_(weight, 1.0 if "norm" in name or "ln_q" in name else 0.0)
    elif "embed_tokens" in name:
        torch.nn.init.normal_(weight, std=0.5)
    elif "llm2vae" in name or "lm_head" in name:
        torch.nn.init.zeros_(weight)
    else:
        fan_in = math.prod(weight.shape[1:])
        deep = any(part in name for part in ("o_proj", "down_proj", "attn.proj"))
        torch.nn.init.normal_(weight, std=(0.3 if deep else 1.0) / math.sqrt(fan_in))


def used_rows(tokenizer: LanceTokenizer, samples: list[Sample]) -> list[int]:
    """Rows of the vocabulary that the world uses."""
    ids = {i for sample in samples for i in (*sample.prompt_ids, *sample.answer_ids)}
    medium = media.Medium(None, (1, 4, 4), torch.zeros(1, 48, 1, 4, 4), Label.SOURCE)
    for system in {sample.system for sample in samples} | {tasks.ASSISTANT}:
        segments, _ = tokenizer.segments(Request("x", system, media=(medium,)), system)
        ids |= {i for segment in segments for i in segment.token_ids()}
    return sorted(ids)


def make_optimizers(trainee: Trainee, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for all else."""
    matrices, others = [], []
    for name, weight in trainee.named_parameters():
        inside = ".layers." in name or "visual.blocks" in name or "merger" in name
        (matrices if weight.ndim == 2 and inside else others).append(weight)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
