"""The CLIP: prompt and media in, interleaved sequence out. It owns the tokenizer, embeddings, vision encoder and head."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.nn as nn
from transformers import Qwen2Tokenizer

import comfy.model_management
import comfy.text_encoders
from comfy.text_encoders.qwen_vl import Qwen2VLVisionTransformer

from . import tasks
from .config import VisionConfig
from .diffusion import CONDITIONING
from .sequence import IM_END, IM_START, Label, Segment, Sequence


@dataclass(frozen=True, eq=False)
class Request:
    """What a caller asks to be encoded; the tokens are made when it is."""

    prompt: str
    system: str


class LanceTokenizer:
    """Qwen2.5's tokenizer, as ComfyUI ships it. Text typed by a user never becomes a special token."""

    def __init__(self):
        folder = os.path.join(list(comfy.text_encoders.__path__)[0], "qwen25_tokenizer")
        self.tokenizer = Qwen2Tokenizer.from_pretrained(folder)

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, split_special_tokens=True)["input_ids"])

    def tokenize_with_weights(self, text: str, return_word_ids=False, target: str = "image", system: str | None = None, **kwargs) -> dict:
        """A request for `target` ("image" or "video"), under its own system prompt unless `system` gives another."""
        return {"lance": Request(text, tasks.TEXT_TO[target] if system is None else system)}

    def segments(self, request: Request) -> tuple[tuple[Segment, ...], int]:
        """The request as segments, and how many of them stand before the prompt.

        Newlines at the ends of the prompt would merge with the template's; they are dropped.
        """
        newline = self.ids("\n")
        head = (IM_START, *self.ids("system\n" + request.system), IM_END, *newline, IM_START, *self.ids("user\n"))
        tail = (IM_END, *newline, IM_START, *self.ids("assistant\n"))
        prompt = self.ids(request.prompt.strip("\n"))
        segments = [Segment(Label.TEMPLATE, head)]
        before = len(segments)
        if prompt:
            segments.append(Segment(Label.PROMPT, prompt))
        return (*segments, Segment(Label.TEMPLATE, tail), Segment(Label.TARGET, grid=(0, 0, 0))), before

    def decode(self, token_ids, skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def state_dict(self) -> dict:
        return {}


class LanceLanguage(nn.Module):
    """Token embeddings, vision encoder and language head: what stands between text or pixels and hidden states."""

    def __init__(self, hidden: int, vocabulary: int, vision: VisionConfig, tokenizer: LanceTokenizer,
                 device=None, dtype=None, operations=None):
        super().__init__()
        self.dtypes = {dtype}
        self.tokenizer = tokenizer
        self.execution_device = None
        self.embed_tokens = operations.Embedding(vocabulary, hidden, device=device, dtype=dtype)
        self.lm_head = operations.Linear(hidden, vocabulary, bias=False, device=device, dtype=dtype)
        self.visual = Qwen2VLVisionTransformer(
            hidden_size=vision.hidden, output_hidden_size=vision.out_hidden, intermediate_size=vision.inner,
            num_heads=vision.heads, num_layers=vision.layers, device=device, dtype=dtype, ops=operations)
        self.visual.fullatt_block_indexes = list(vision.full_attention)

    def reset_clip_options(self) -> None:
        self.execution_device = None

    def set_clip_options(self, options: dict) -> None:
        self.execution_device = options.get("execution_device", self.execution_device)

    def encode_token_weights(self, tokens: dict) -> tuple[torch.Tensor, None, dict]:
        """Embeddings [1, n, hidden] of the sequence's understanding tokens, and the sequence itself."""
        segments, head = self.tokenizer.segments(tokens["lance"])
        ids = [i for s in segments for i in (s.token_ids() if not s.latents else s.token_ids()[:: len(s) - 1])]
        embeddings = self.embed_tokens(torch.tensor([ids], device=self.execution_device))
        embeddings = embeddings.to(comfy.model_management.intermediate_device())
        return embeddings, None, {CONDITIONING: Sequence(segments, embeddings, head)}
