"""Several processes that train one model on a CPU, where small operations gain little from threads."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist


def in_processes(count: int, function: Callable, arguments: tuple) -> None:
    """Calls `function(rank, *arguments)` in that many processes that have joined."""
    if count == 1:
        function(0, *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_joined, (count, f"{folder}/rendezvous", function, arguments), nprocs=count)


def _joined(rank: int, count: int, rendezvous: str, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(max(1, os.cpu_count() // count))
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=count)
    function(rank, *arguments)


def reduce_gradients(parameters: list[torch.Tensor]) -> None:
    """Sums them over all processes. Parameters that no process used keep none, so that nothing moves them."""
    if not dist.is_initialized():
        return
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
    flat = torch.cat([*((torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters), used])
    dist.all_reduce(flat)
    *gradients, used = flat.split([*(p.numel() for p in parameters), len(parameters)])
    for parameter, gradient, count in zip(parameters, gradients, used.tolist()):
        parameter.grad = gradient.view_as(parameter) if count else None


def shared_by_first(value):
    """What the first process has."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
