"""The least time that a device can take: work that has to be done, over rates that the device was seen to reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfyui_lance.lance_model.sequence import Sequence
from meter import now

BYTES = {"bf16": 2, "fp32": 4, "fp8": 1}  # of a weight
HEAD_ROWS = 151936  # of the language head


@dataclass
class Device:
    """Rates in FLOP/s and bytes/s."""

    flops: float
    bandwidth: float


def fastest(run: Callable[[], object], device: str, times: int = 5) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    seconds = []
    for _ in range(times + 1):
        start = now(device)
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(now(device) - start)
    return min(seconds[1:])


def measure(device: str, dtype: torch.dtype) -> Device:
    """Matrix products of a pass's shape in the run's dtype; reads by a sum and by the product with one vector."""
    side = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(side, 2 * side, device=device).to(dtype) for _ in range(2))
    flops = 4 * side**3 / fastest(lambda: torch.nn.functional.linear(a, b), device)
    memory = torch.ones(2**16, 2**13, device=device, dtype=dtype if device != "cpu" else torch.float32)
    row = memory[0].clone()
    reads = (lambda: memory.sum(), lambda: torch.nn.functional.linear(row, memory))
    return Device(flops, memory.nbytes / min(fastest(read, device, 3) for read in reads))


def expert(dims: dict[str, int]) -> int:
    """Parameters of one expert's matrices."""
    queries, keys = dims["heads"] * dims["head_dim"], dims["kv_heads"] * dims["head_dim"]
    return dims["layers"] * dims["hidden"] * (2 * queries + 2 * keys + 3 * dims["inner"])


def pairs(sequence: Sequence, first: int = 0) -> tuple[int, int]:
    """Tokens and query-key pairs of the segments from `first` on."""
    start = sum(len(segment) for segment in sequence.segments[:first])
    tokens = seen = 0
    for segment in sequence.segments[first:]:
        n = len(segment)
        own = n * (n + 1) // 2 if segment.is_text else n * n
        tokens, seen = tokens + n, seen + n * (start + tokens) + own
    return tokens, seen


def sampling(
    device: Device, dims: dict[str, int], dtype: str, branches: list[tuple[Sequence, int]]
) -> tuple[float, float]:
    """(TFLOP, seconds) that a sampling run needs: the context once, its prefix once, and the target's passes.

    `branches` are the placed sequences of the conditional and the unconditional branch, and how often each is asked.
    A pass lasts as long as its arithmetic or as reading its experts, whichever is longer.
    """
    flop = seconds = 0.0
    per_pair = 4 * dims["heads"] * dims["head_dim"] * dims["layers"]
    for i, (sequence, passes) in enumerate(branches):
        context = sequence.without_target()
        for times, part, first in (
            (1, context, sequence.prefix if i else 0),
            (passes, sequence, len(context.segments)),
        ):
            tokens, seen = pairs(part, first)
            one = tokens * 2 * expert(dims) + seen * per_pair
            experts = 2 if any(segment.latents for segment in part.segments[first:]) else 1
            flop += times * one
            seconds += times * max(one / device.flops, experts * expert(dims) * BYTES[dtype] / device.bandwidth)
    return flop / 1e12, seconds


def token(device: Device, dims: dict[str, int], dtype: str, known: float) -> float:
    """Seconds for the next token of an answer after `known` ones: one expert, the head, keys and values are read."""
    kv = 2 * dims["kv_heads"] * dims["head_dim"] * dims["layers"] * known * max(2, BYTES[dtype])
    head = HEAD_ROWS * dims["hidden"] * max(2, BYTES[dtype])
    return (expert(dims) * BYTES[dtype] + head + kv) / device.bandwidth
