"""Text generation: the understanding expert inside MODEL, between the embeddings and the head of CLIP.

One pass over the question fills preallocated keys and values, then one pass a token appends to them. The device is not
waited for at every token: whether the answer has ended is looked up in blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils
import torch

from .choosing import choose
from .decoding import Held
from .plan import Plan
from .positions import rotary_frequencies
from .sequence import IM_END, TEXT_VOCABULARY

LOOK_EVERY = 8  # tokens, on devices that run ahead of Python


def loaded_patcher(module: torch.nn.Module):
    """The patcher through which ComfyUI has loaded this module, LoRAs included; None if it is not loaded."""
    for loaded in comfy.model_management.current_loaded_models:
        if loaded.model is not None and loaded.model.model is module:
            return loaded.model
    return None


def load(language, model_patcher, request, length: int, beside: float = 0) -> None:
    """Loads CLIP and MODEL, with room for a request, an answer of that many tokens and further bytes `beside`."""
    patchers = [p for p in (loaded_patcher(language), model_patcher) if p is not None]
    memory = _memory(model_patcher, request, length) + beside
    memory = max(memory, language.memory_estimation_function({"lance": request}, language.execution_device))
    comfy.model_management.load_models_gpu(patchers, memory_required=memory)


def generate(
    language,
    model_patcher,
    request,
    max_length: int = 256,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    seed: int | None = None,
    on_tokens: Callable[[list[int]], None] | None = None,
) -> list[int]:
    """Ids of the answer to a request, without end token; greedy unless `do_sample`.

    `language` is the CLIP's module, loaded and told its execution device by its caller; `model_patcher` the MODEL whose
    understanding expert answers. `on_tokens` gets all ids so far whenever new ones are known.
    """
    load(language, model_patcher, request, max_length)
    model, device = model_patcher.model, model_patcher.load_device
    transformer, dtype = model.diffusion_model, model.get_dtype_inference()
    options = {"prefetch_dynamic_vbars": model_patcher.is_dynamic()}

    sequence, norm = language.question(request), transformer.language_model.model.norm
    hidden, cache, frequencies = _read(transformer, sequence, max_length, device, dtype, options)
    known = frequencies.shape[1] - max_length

    rules = do_sample, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty
    generator = torch.Generator(device=language.execution_device).manual_seed(seed or 0) if do_sample else None
    look_every = 1 if comfy.model_management.is_device_cpu(device) else LOOK_EVERY
    progress = comfy.utils.ProgressBar(max_length)
    answer = torch.empty(max_length, dtype=torch.int64, device=language.execution_device)
    ids: list[int] = []
    with Held(transformer, device, dtype, options) as held:
        for step in range(max_length):
            if step:
                token = language.embed_tokens(answer[None, step - 1 : step], out_dtype=dtype).to(device)
                last = known + step - 1
                hidden = held.read(token, frequencies[:, last : last + 1], cache, last)
            logits = language.lm_head(norm(hidden[:, -1]).to(language.execution_device))
            logits = logits[:, :TEXT_VOCABULARY].float()
            answer[step] = choose(logits, answer[:step], generator, *rules)
            if (step + 1) % look_every and step + 1 < max_length:
                continue
            ids = answer[: step + 1].tolist()
            ended = IM_END in ids
            ids = ids[: ids.index(IM_END)] if ended else ids
            progress.update_absolute(max_length if ended else step + 1, max_length)
            if on_tokens is not None:
                on_tokens(ids)
            if ended:
                break
    return ids


def _read(transformer, sequence, max_length: int, device, dtype, options: dict) -> tuple:
    """The question's last hidden state, keys and values with room for the answer, and frequencies of both."""
    plan = Plan.of(sequence)
    positions, _ = plan.positions
    known = positions.shape[1]
    cache = transformer.cache(known + max_length, device, dtype)
    # Text goes on one step after the last text token, on all three axes.
    following = positions[:, -1:] + torch.arange(1, max_length + 1)
    frequencies = rotary_frequencies(torch.cat([positions, following], dim=1), transformer.head_dim, device)
    embeddings = sequence.embeddings.to(device, dtype)
    hidden = transformer.read(embeddings, frequencies[:, :known], cache, 0, plan.runs, options)
    return hidden, cache, frequencies


def _memory(model_patcher, request, max_length: int) -> float:
    """Bytes beside the weights: keys and values of question and answer, and the question's activations."""
    question = sum(medium.patches.shape[0] // 4 for medium in request.media) + len(request.prompt) + 256
    return model_patcher.model.answer_memory(question, max_length)
