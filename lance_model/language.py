"""The CLIP: prompt and media in, interleaved sequence out. It owns the tokenizer, embeddings, vision encoder and
head."""

from __future__ import annotations

import inspect
import logging
import os
from dataclasses import dataclass, replace

import comfy.model_management
import comfy.text_encoders
import torch
import torch.nn as nn
from transformers import Qwen2Tokenizer

from . import generation, habits, partners, resolution, scoring, tasks
from .checkpoint import CheckpointError
from .config import VisionConfig
from .diffusion import Lance
from .media import Medium, preprocess, sample_frames
from .sequence import CONDITIONING, IM_END, IM_START, TEXT_VOCABULARY, Label, Segment, Sequence, vision_slices
from .vision import VisionEncoder


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be encoded, or answered. Without a `system` prompt the task's own is used; "" is none at all."""

    prompt: str
    system: str | None = None
    target: str = "image"
    media: tuple[Medium, ...] = ()
    template: bool = True
    mape: bool = False


class LanceTokenizer:
    """Qwen2.5's tokenizer, as ComfyUI ships it. Text typed by a user never becomes a special token."""

    def __init__(self):
        folder = os.path.join(list(comfy.text_encoders.__path__)[0], "qwen25_tokenizer")
        self.tokenizer = Qwen2Tokenizer.from_pretrained(folder)

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, split_special_tokens=True)["input_ids"])

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids=False,
        system: str | None = None,
        target: str = "image",
        media: tuple[Medium, ...] = (),
        image: torch.Tensor | None = None,
        video: torch.Tensor | None = None,
        audio=None,
        images=(),
        videos=(),
        audios=(),
        skip_template: bool = False,
        system_prompt: str = "",
        mape: bool = False,
        **kwargs,
    ) -> dict:
        """A request, as a token dict that encode_token_weights and generate understand.

        Core's Generate Text hands over `image` (each of the batch is a picture) and `video` (frames at 24 per second),
        or lists of them, and `system_prompt`, where "" is the task's own. Two more of its options are for models that
        need them and change nothing: `thinking`, and `min_length`, to which prompts are padded.
        """
        if audio is not None or audios:
            raise ValueError("Lance cannot hear: it reads pictures and clips. Disconnect the audio.")
        # Only Generate Text names these; the pictures of other nodes are prepared for their own models.
        if images is not None and len(images) and not kwargs.keys() & {"thinking", "min_length"}:
            raise ValueError(
                "This node encodes pictures for another model. Use Lance Encode Image Edit or Lance Encode References."
            )
        batches, clips = _listed(image, images), _listed(video, videos)
        if skip_template and not text.strip() and not batches and not clips:
            raise ValueError(
                "There is nothing to answer. Write a prompt, connect a picture, or use the default template."
            )
        seen = [preprocess(picture[None], resolution.IMAGE) for batch in batches for picture in batch]
        seen += [preprocess(sample_frames(clip, fps=24), resolution.VIDEO) for clip in clips]
        if system is None:
            system = system_prompt.strip() or None
        note = habits.noted(text)
        if note is not None:
            logging.warning(note)
        request = Request(text, system, "video" if clips else target, (*media, *seen), not skip_template, mape)
        return {"lance": request}

    def segments(self, request: Request, system: str) -> tuple[list[Segment], int]:
        """The request as segments up to where the target or the answer begins, and how many stand before the prompt.

        Newlines at the ends of the prompt would merge with the template's; they are dropped.
        """
        head, tail = (), ()
        if request.template:
            newline = self.ids("\n")
            head = (IM_START, *self.ids("system\n" + system), IM_END, *newline, IM_START, *self.ids("user\n"))
            tail = (IM_END, *newline, IM_START, *self.ids("assistant\n"))
        texts = (
            [Segment(Label.TEMPLATE, head)],
            [Segment(Label.PROMPT, self.ids(request.prompt.strip("\n"))), Segment(Label.TEMPLATE, tail)],
        )
        before = [*texts[0], *(block for medium in request.media for block in medium.segments())]
        before = [segment for segment in before if len(segment)]
        return [*before, *(segment for segment in texts[1] if len(segment))], len(before)

    def decode(self, token_ids, skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def state_dict(self) -> dict:
        return {}


def _listed(one, several) -> list:
    return ([] if one is None else [one]) + ([] if several is None else list(several))


def check(clip) -> None:
    """Raises ValueError for another model's CLIP."""
    partners.check(clip, "cond_stage_model", LanceLanguage, "CLIP")


def prepare(clip, request: Request) -> LanceLanguage:
    """Loads ComfyUI's CLIP for a request and returns its module, ready to run."""
    clip.load_model({"lance": request})
    clip.cond_stage_model.set_clip_options({"execution_device": clip.patcher.load_device})
    return clip.cond_stage_model


def embed_media(clip, media: list[Medium]) -> list[Medium]:
    """The media with their vision embeddings, for several encodings of the same media."""
    language = prepare(clip, Request("", media=tuple(media)))
    with comfy.model_management.cuda_device_context(clip.patcher.load_device):
        return [replace(medium, embeddings=language.embed_vision(medium)) for medium in media]


def encode_pair(clip, prompt: str, negative_prompt: str = "", media: list[Medium] = (), **request):
    """Positive and negative CONDITIONING over the same media, which the vision encoder sees once."""
    check(clip)
    media = tuple(embed_media(clip, media)) if media else ()

    def encode(text: str):
        return clip.encode_from_tokens_scheduled(clip.tokenize(text, media=media, **request))

    return encode(prompt), encode(negative_prompt)


def _prepare_with(clip, model, request: Request) -> LanceLanguage:
    """As `prepare`, once it is sure that a MODEL of its own is Lance's and as wide."""
    check(clip)
    partners.check(model, "model", Lance, "MODEL")
    partners.check_width(clip.cond_stage_model.lm_head.in_features, model.model.diffusion_model.hidden)
    return prepare(clip, request)


def log_likelihoods(clip, model, request: Request, answers: list[str]) -> list[torch.Tensor]:
    """Log-probabilities of each answer's tokens by a MODEL of its own, LoRAs included; [n] each, on the CPU."""
    language = _prepare_with(clip, model, request)
    ids = [language.tokenizer.ids(answer) for answer in answers]
    with comfy.model_management.cuda_device_context(clip.patcher.load_device):
        return scoring.log_probabilities(language, model, request, ids)


def answer(clip, model, request: Request, **options) -> list[int]:
    """Ids of the answer by a MODEL of its own, LoRAs included. Options as in `generation.generate`."""
    language = _prepare_with(clip, model, request)
    with comfy.model_management.cuda_device_context(clip.patcher.load_device):
        return generation.generate(language, model, request, **options)


class LanceLanguage(nn.Module):
    """Token embeddings, vision encoder and language head: what stands between text or pixels and hidden states."""

    def __init__(
        self,
        hidden: int,
        vocabulary: int,
        vision: VisionConfig | None,
        tokenizer: LanceTokenizer,
        device=None,
        dtype=None,
        operations=None,
    ):
        super().__init__()
        self.dtype = dtype
        self.dtypes = {dtype}
        self.tokenizer = tokenizer
        self.execution_device = None
        self.embed_tokens = operations.Embedding(vocabulary, hidden, device=device, dtype=dtype)
        self.lm_head = operations.Linear(hidden, vocabulary, bias=False, device=device, dtype=dtype)
        self.visual = vision and VisionEncoder(
            hidden_size=vision.hidden,
            output_hidden_size=vision.out_hidden,
            intermediate_size=vision.inner,
            num_heads=vision.heads,
            num_layers=vision.layers,
            device=device,
            dtype=dtype,
            ops=operations,
        )
        if vision is not None:
            self.visual.fullatt_block_indexes = list(vision.full_attention)

    def reset_clip_options(self) -> None:
        self.execution_device = None

    def set_clip_options(self, options: dict) -> None:
        self.execution_device = options.get("execution_device", self.execution_device)

    def memory_estimation_function(self, tokens: dict, device=None) -> int:
        """Bytes of activations of the vision encoder, for the largest of the media. Nodes that save pass no tokens."""
        seen = tokens["lance"].media if tokens else ()
        rows = max((medium.patches.shape[0] for medium in seen), default=0)
        if not rows or self.visual is None:
            return 0
        return rows * self.visual.hidden_size * 20 * comfy.model_management.dtype_size(self.compute_dtype(device))

    def compute_dtype(self, device) -> torch.dtype:
        return (
            self.dtype
            if self.dtype == torch.bfloat16 and comfy.model_management.should_use_bf16(device)
            else torch.float32
        )

    def embed_vision(self, medium: Medium) -> torch.Tensor:
        """Vision embeddings [t·h·w / 4, hidden] of a medium."""
        if medium.embeddings is not None:
            return medium.embeddings
        if self.visual is None:
            raise CheckpointError(
                "There is no vision encoder, with which Lance looks at pictures and clips. Put the folder "
                "Qwen2.5-VL-ViT (vit.safetensors, config.json) from the official Lance repository into models/lance, "
                "or choose the file in Load Lance."
            )
        device = self.execution_device
        patches = medium.patches.to(device, self.compute_dtype(device))
        return self.visual(patches, medium.grid)

    def sequence(self, request: Request, segments: list[Segment], prefix: int, mape: bool) -> Sequence:
        """Embeds the segments' understanding tokens."""
        ids = [i for segment in segments for i in segment.und_ids()]
        if max(ids) >= len(self.embed_tokens.weight):
            raise ValueError(
                f"This Lance has embeddings for {len(self.embed_tokens.weight):,} tokens, but its tokenizer has "
                f"{TEXT_VOCABULARY:,}: the model's file is cut short or changed. Download it again."
            )
        device = self.execution_device
        embeddings = self.embed_tokens(torch.tensor([ids], device=device), out_dtype=self.compute_dtype(device))
        for medium, place in zip(request.media, vision_slices(segments)):
            embeddings[0, place] = self.embed_vision(medium).to(embeddings)
        return Sequence(tuple(segments), embeddings, prefix, mape)

    def encode_token_weights(self, tokens: dict) -> tuple[torch.Tensor, None, dict]:
        """Embeddings [1, n, hidden] of the sequence's understanding tokens, and the sequence itself."""
        request = tokens["lance"]
        system = tasks.TEXT_TO[request.target] if request.system is None else request.system
        segments, prefix = self.tokenizer.segments(request, system)
        segments.append(Segment(Label.TARGET, grid=(0, 0, 0)))
        sequence = self.sequence(request, segments, prefix, mape=True)
        sequence = replace(sequence, embeddings=sequence.embeddings.to(comfy.model_management.intermediate_device()))
        return sequence.embeddings, None, {CONDITIONING: sequence}

    def question(self, request: Request) -> Sequence:
        """The sequence that ends where the answer begins. Positions are plain mRoPE unless the request asks for
        MaPE."""
        system = request.system
        if system is None:
            system = tasks.QUESTION[request.target] if request.media else tasks.ASSISTANT
        segments, prefix = self.tokenizer.segments(request, system)
        return self.sequence(request, segments, prefix, request.mape)

    def generate(self, tokens: dict, **options) -> list[int]:
        """Ids of the answer, without end token. Options are those of core's Generate Text, see
        `generation.generate`. Others, which newer versions may add, are left out with a word in the log."""
        options.pop("mtp", None)  # by its own description without effect on models that have no heads for it
        unknown = options.keys() - inspect.signature(generation.generate).parameters
        if unknown:
            logging.warning("Lance answers without %s, which it does not know.", ", ".join(sorted(unknown)))
        known = {name: value for name, value in options.items() if name not in unknown}
        return generation.generate(self, self.transformer_patcher, tokens["lance"], **known)
