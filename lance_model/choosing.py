"""Which token comes next: by ComfyUI's own rules, without waiting for the device."""

from __future__ import annotations

import torch
from comfy.text_encoders.llama import BaseGenerate
from torch.overrides import TorchFunctionMode


class Drawing(TorchFunctionMode):
    """Within it `torch.multinomial` draws the same token, but does not look whether the probabilities are any, for
    which it would wait for the device twice."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return (draw if function is torch.multinomial else function)(*args, **(kwargs or {}))


def draw(probabilities: torch.Tensor, num_samples: int, generator: torch.Generator | None) -> torch.Tensor:
    """One token [1, 1] by its probability [1, n]: of exponential waiting times at these rates the shortest."""
    times = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / times).argmax(dim=-1, keepdim=True)


def penalise(logits: torch.Tensor, said: torch.Tensor, repetition: float, presence: float) -> None:
    """Lowers the logits [1, n] of the tokens `said`, as ComfyUI does from a list on the computer."""
    if len(said) and (repetition != 1.0 or presence):
        those = logits[:, said]
        logits[:, said] = torch.where(those < 0, those * repetition, those / repetition) - presence


def choose(
    logits: torch.Tensor,
    said: torch.Tensor,
    generator: torch.Generator | None,
    do_sample: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    presence_penalty: float,
) -> torch.Tensor:
    """The token after those `said`, from its logits [1, n], which are changed; the likeliest unless `do_sample`."""
    if do_sample and temperature:
        penalise(logits, said, repetition_penalty, presence_penalty or 0.0)
    with Drawing():
        token = BaseGenerate().sample_token(logits, temperature, top_k, top_p, min_p, 1.0, (), generator, do_sample)
    return token[0, 0]
