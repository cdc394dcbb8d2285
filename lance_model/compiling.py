"""The transformer under a node that compiles it, such as core's TorchCompileModel.

As a whole it would be compiled anew for each structure of context, batch and size, on both sides of the CFG interval,
until PyTorch gives up and runs all else uncompiled. What is worth it are two parts of a layer, `project` and `finish`.
They are given one row of tokens [1, n, hidden] and nothing of the context, so a few graphs serve everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .layer import DecoderLayer


@contextmanager
def in_parts(model) -> Iterator[tuple[Callable, Callable] | None]:
    """`project` and `finish`, compiled as the model's transformer is to be, which meanwhile runs uncompiled; None if
    nothing compiles it."""
    transformer = model.diffusion_model
    compile = getattr(transformer, "dynamo_ctx", None)  # of the module that torch.compile wraps another in
    if compile is None:
        yield None
        return
    model.diffusion_model = transformer._orig_mod
    try:
        yield compile(DecoderLayer.project), compile(DecoderLayer.finish)
    finally:
        model.diffusion_model = transformer
