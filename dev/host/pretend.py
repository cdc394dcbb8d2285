"""A pretend card: a device whose tensors live in the computer's memory, and which minds what a real one minds.

Its tensors report a device of their own and compute on the CPU, so that all of ComfyUI and of the plugin runs on it
and gives the CPU's numbers. As on CUDA, tensors of the computer and of the card do not meet in an operation, but for
single numbers in pointwise operations and indices. It counts

- launches: operations of PyTorch that start work on the card. Views, allocations and empty results start none; linear
  layers, attention, norms and comfy-kitchen's kernels are one each, as they are on a card. Those that are two there
  count as two: a product added to a matrix that is to stay, which is copied first, and comfy-kitchen's rotation of
  queries and keys with different numbers of heads;
- waits: the places where Python waits for the card. Numbers that are read, shapes that depend on numbers, and copies
  between the two memories unless `non_blocking`;
- moved: bytes from one memory to the other.

PyTorch keeps the device for the rest of the process.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple
from unittest import mock

import comfy.model_management
import torch
from comfy.model_management import VRAMState
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

NAME = "pretend_card"
FEW = 4096  # numbers that a card without numbers keeps all the same: noise levels, grids, ids of an answer

aten = torch.ops.aten
READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
COPIES = (aten._to_copy.default, aten.copy_.default)
WHOLE = (  # composed of others, but one kernel on a card
    aten.linear.default,
    aten.scaled_dot_product_attention.default,
    aten.rms_norm.default,
    aten.layer_norm.default,
)
WAITS = {aten.multinomial.default: 2}  # it reads whether the probabilities are any
ALLOCATES = ("empty", "new_empty", "detach", "alias", "lift_fresh", "_unsafe_view", "resize_")


def device() -> torch.device | None:
    """The card, ComfyUI's current device; None where this PyTorch cannot pretend to have one."""
    if not hasattr(torch, NAME):
        register = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
        if register is None:
            return None
        register(NAME)
    return torch.device(NAME, 0)


class CardTensor(torch.Tensor):
    """A tensor on the card. `inner` is the CPU's tensor with its numbers, or a meta tensor without any."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device(),
        )

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> list:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} on a tensor of the pretend card, which is not switched on.")


class Count(NamedTuple):
    """Launches, how many of them are attention, waits, and bytes to the card and from it."""

    launches: int
    attention: int
    waits: int
    there: int
    back: int

    def since(self, earlier: Count) -> Count:
        return Count(*(now - then for now, then in zip(self, earlier)))


class Card(TorchDispatchMode):
    """The card while it is switched on, and what it counts.

    Without `numbers` large tensors have shapes alone, and what is read of them, or written with them, is zero.
    """

    def __init__(self, numbers: bool = True):
        super().__init__()
        self.numbers = numbers
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.moved: Counter[tuple[str, str]] = Counter()
        self.known: dict[tuple, object] = {}  # results of operations on shapes

    def count(self) -> Count:
        """All up to now."""
        attention = self.launches[str(aten.scaled_dot_product_attention.default)]
        there, back = self.moved["cpu", NAME], self.moved[NAME, "cpu"]
        return Count(self.launches.total(), attention, self.waits.total(), there, back)

    def __enter__(self):
        # `torch.tensor(…, device=card)` then makes its tensor on the CPU and moves it where this can see it.
        self._lift = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self._lift)
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = list(_leaves((args, kwargs)))
        tensors = [x for x in given if isinstance(x, torch.Tensor)]
        cards = [x for x in tensors if isinstance(x, CardTensor)]
        target = next((x for x in given if isinstance(x, torch.device)), None)
        if not cards and (target is None or target.type != NAME):
            return function(*args, **kwargs)
        if _composed(function):
            with self:
                return function.decompose(*args, **kwargs)
        if function in COPIES and (moved := self._copy(function, args, kwargs, target)) is not None:
            return moved
        self._check(function, args, kwargs, tensors, cards)
        self._count_waits(function, args, kwargs)
        if function is aten._local_scalar_dense.default:
            return self._number(args[0])
        out = self._run(function, args, kwargs, target)
        made = _written(args, kwargs) if out is None else out
        if _starts_work(function) and any(isinstance(x, CardTensor) and x.numel() for x in _leaves(made)):
            self.launches[str(function)] += 1 + _is_two(function, args)
        return return_and_correct_aliasing(function, args, kwargs, out)

    def _copy(self, function, args, kwargs, target) -> torch.Tensor | None:
        """A copy from one memory to the other; None if this is not one."""
        if function is aten._to_copy.default:
            source, blocking = args[0], not kwargs.get("non_blocking", False)
            if target is None or target.type == source.device.type:
                return None
            inner = source.inner if isinstance(source, CardTensor) else source
            options = {"dtype": kwargs.get("dtype") or source.dtype, "memory_format": kwargs.get("memory_format")}
            if target.type == NAME:
                out = CardTensor(self._settle(aten._to_copy(self._settle(inner), **options)))
            elif inner.is_meta:
                out = torch.zeros(inner.shape, dtype=options["dtype"])
            else:
                out = aten._to_copy(inner, **options)
        else:
            out, source = args[:2]
            if out.device.type == source.device.type:
                return None
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            ours, theirs = (x.inner if isinstance(x, CardTensor) else x for x in (out, source))
            if not ours.is_meta and not theirs.is_meta:
                ours.copy_(theirs)
        self.moved[source.device.type, out.device.type] += out.nbytes
        if blocking:
            self.waits[f"{source.device.type} to {out.device.type}"] += 1
        return out

    def _check(self, function, args, kwargs, tensors, cards) -> None:
        """Raises where CUDA would: tensors of two devices in one operation."""
        for tensor in tensors:
            if isinstance(tensor, CardTensor) or not cards:
                continue
            number = tensor.ndim == 0 and (torch.Tag.pointwise in function.tags or function in COPIES + INDEXED)
            index = function in INDEXED and any(tensor is x for x in args[1] if x is not None)
            written = cards and function._schema.is_mutable and tensor is _written(args, kwargs)
            if written or not (number or index):
                raise RuntimeError(
                    f"{function} got tensors of the card and of the computer: "
                    f"{[(x.device.type, tuple(x.shape)) for x in tensors]}."
                )

    def _count_waits(self, function, args, kwargs) -> None:
        waits = WAITS.get(function, 0)
        if function in INDEXED:
            indices = [x for x in args[1] if x is not None]
            # A masked single number is filled in; any other mask is first made a list of places, of unknown length.
            masked = any(x.dtype in (torch.bool, torch.uint8) for x in indices)
            filled = function is not aten.index.Tensor and len(indices) == 1 and args[2].numel() == 1
            waits += masked and not filled
            waits += sum(not isinstance(x, CardTensor) for x in indices)
        elif any(tag in function.tags for tag in READS):
            waits += 1
        if waits:
            self.waits[str(function)] += waits

    def _number(self, tensor: CardTensor):
        inner = tensor.inner
        return torch.zeros((), dtype=inner.dtype).item() if inner.is_meta else inner.item()

    def _settle(self, inner: torch.Tensor) -> torch.Tensor:
        return inner if self.numbers or inner.is_meta or inner.numel() <= FEW else inner.to("meta")

    def _run(self, function, args, kwargs, target):
        """The operation on the inner tensors, its results on the card (or where `target` says)."""
        args, kwargs = _mapped(CardTensor, lambda x: x.inner, (args, kwargs))
        if function._schema.name.startswith("aten::new_"):  # of which the first tensor only says the kind
            args = (args[0].new_empty(0, device="cpu"), *args[1:])
            target = target or device()
        shapes = any(isinstance(x, torch.Tensor) and x.is_meta for x in _leaves((args, kwargs)))
        if shapes and function._schema.is_mutable:
            written = _written(args, kwargs)
            if not written.is_meta:
                written.zero_()
            return CardTensor(written) if function._schema.returns else None
        if shapes:
            args, kwargs = _mapped(torch.Tensor, lambda x: x.to("meta"), (args, kwargs))
            kwargs = {name: value for name, value in kwargs.items() if name != "generator"}
        if target is not None:
            kwargs = {**kwargs, "device": "meta" if shapes or not self.numbers else "cpu"}
        run = self._shapes if shapes and _makes_new(function) else _compute
        out = run(function, args, kwargs)
        if function is aten.scaled_dot_product_attention.default:  # heads beside each other, as a card's kernels write
            out = out.transpose(1, 2).contiguous().transpose(1, 2)
        if target is not None and not shapes and not self.numbers and out.numel() <= FEW:
            out = function(*args, **(kwargs | {"device": "cpu"}))
        if target is not None and target.type != NAME:
            return out
        return _mapped(torch.Tensor, lambda x: CardTensor(self._settle(x)), out)

    def _shapes(self, function, args, kwargs):
        """Results on meta tensors, worked out once for the same shapes: most of the time went there."""
        key = (function, *kwargs, *map(_kind, _leaves((args, kwargs))))
        if key not in self.known:
            self.known[key] = _compute(function, args, kwargs)
        return _mapped(torch.Tensor, torch.empty_like, self.known[key])


def _kind(x) -> tuple:
    """What of an argument decides about the shapes of results."""
    return (x.shape, x.stride(), x.dtype) if isinstance(x, torch.Tensor) else (type(x), x)


def _compute(function, args, kwargs):
    return IN_FLOAT.get(function, function)(*args, **kwargs)


def _glu_jvp(glu: torch.Tensor, x: torch.Tensor, dx: torch.Tensor, dim: int) -> torch.Tensor:
    """As a card's kernel computes it. The CPU has none for 16 bits."""
    (_, b), (da, db) = (both.float().chunk(2, dim) for both in (x, dx))
    sigmoid = 1 / (1 + (-b).exp())
    return (da * sigmoid + glu.float() * (db - sigmoid * db)).to(glu.dtype)


IN_FLOAT = {aten.glu_jvp.default: _glu_jvp}


def _leaves(x) -> Iterator:
    """What is in nested lists and the like; PyTorch's own way takes longer than all the rest."""
    if isinstance(x, (tuple, list, dict)):
        for part in x.values() if isinstance(x, dict) else x:
            yield from _leaves(part)
    else:
        yield x


def _mapped(kind: type, change: Callable, x):
    """x with `change` made to everything of that kind in it."""
    if isinstance(x, dict):
        return {name: _mapped(kind, change, part) for name, part in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(_mapped(kind, change, part) for part in x)
    return change(x) if isinstance(x, kind) else x


@cache
def _composed(function) -> bool:
    """Whether it is nothing but other operations, also on a card."""
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd")
    return composite and function not in WHOLE


@cache
def _makes_new(function) -> bool:
    """Whether no result shares the memory of an argument."""
    return all(returned.alias_info is None for returned in function._schema.returns)


@cache
def _starts_work(function) -> bool:
    name = function._schema.name.removeprefix("aten::")
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
    return not view and not name.startswith(ALLOCATES)


def _written(args, kwargs) -> torch.Tensor:
    """What an operation writes to that makes no result of its own."""
    return kwargs.get("out", args[0])


def _is_two(function, args) -> bool:
    """Whether what is one operation to PyTorch is two launches."""
    if function in (aten.addmm.default, aten.addmm.out):
        return args[0].ndim == 2
    pair = re.match(r"comfy_kitchen\.(apply|rms)_rope(_split_half)?_?\.", str(function))
    return pair is not None and args[0].shape != args[1].shape


@contextmanager
def comfyui(
    model: bool = True,
    clip: bool = True,
    bf16: bool = True,
    memory: int = 24 * 2**30,
    vram: VRAMState = VRAMState.NORMAL_VRAM,
    numbers: bool = True,
) -> Iterator[Card]:
    """The card, switched on, with ComfyUI told what there is.

    `model` and `clip` say whether MODEL (with the VAE) and CLIP go to the card, `bf16` whether it is one of NVIDIA's
    that computes in bfloat16 or another's that does not, `memory` how many bytes it has, `vram` how ComfyUI uses them:
    NO_VRAM keeps all weights in the computer's memory.
    """
    management, generator = comfy.model_management, torch.Generator
    there, host = device(), torch.device("cpu")
    current = there if model else host

    def memory_of(original: Callable) -> Callable:
        def ask(dev=None, both: bool = False):
            if (dev or current).type != NAME:
                return original(dev or current, both)
            return (memory, memory) if both else memory

        return lambda dev=None, torch_free_too=False, torch_total_too=False: ask(dev, torch_free_too or torch_total_too)

    def is_card(dev=None, *args, **kwargs) -> bool:
        return (dev or current).type == NAME

    told = {
        "get_torch_device": lambda: current,
        "get_all_torch_devices": lambda exclude_current=False: [] if exclude_current else [current],
        "text_encoder_device": lambda: there if clip else host,
        "vram_state": vram,
        "is_nvidia": lambda: bf16,
        **{name: lambda dev=None: False for name in vars(management) if re.fullmatch("supports_.*_compute", name)},
        "should_use_fp16": is_card,
        "should_use_bf16": is_card if bf16 else lambda *args, **kwargs: False,
        "get_free_memory": memory_of(management.get_free_memory),
        "get_total_memory": memory_of(management.get_total_memory),
    }
    with (
        mock.patch.multiple(management, **told),
        # The card's random numbers are the computer's.
        mock.patch.object(torch, "Generator", lambda device="cpu": generator()),
        torch.inference_mode(),
        Card(numbers) as card,
    ):
        yield card
