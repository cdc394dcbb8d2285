"""Keys and values of the context, computed once per sampling run and branch.

Nothing before the target depends on the noise, so a run computes it once and every step attends to it. The conditional
and the unconditional branch share what stands before the prompt (system prompt and media), so that is computed and
kept once. The store is made by a wrapper around the sampling run and dies with it, interrupted or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import comfy.patcher_extension

from .sequence import Sequence
from .streaming import KeyValues, Waiting

STORE = "lance_context"  # its place in the run's transformer_options


@dataclass
class Context:
    """Pieces of keys and values whose concatenation is the context, and how many tokens of the first are the prefix.

    `step` is the sampling step that used it last.
    """

    pieces: list[KeyValues]
    prefix: int
    step: object = None

    def prefix_pieces(self) -> list[KeyValues]:
        return [[(k[:, : self.prefix], v[:, : self.prefix]) for k, v in self.pieces[0]]] if self.prefix else []


class ContextStore:
    """Contexts and target tables of one sampling run. Keys are (sequence, variant), sequences being compared by
    identity."""

    def __init__(self):
        self._contexts: dict[tuple, Context] = {}
        self._targets: dict[tuple, object] = {}
        self._steps: tuple[object, object] = (None, None)  # the last and the current one
        self.waiting = Waiting()

    def context(
        self,
        sequence: Sequence,
        variant: tuple,
        step: object,
        compute: Callable[[int, list[KeyValues]], KeyValues],
        room: Callable[[], bool],
    ) -> list[KeyValues]:
        """The sequence's keys and values; `compute(first, past)` makes those from segment `first` on. Those of a
        context window are made again each time if there is no `room` for them.

        `variant` names all else that they depend on: the model, the device, and the weights where hooks change them.
        `step` is an object of the current step's own: keys and values of a variant that it does not use any more, as
        a scheduled LoRA has moved on, are dropped when its successor's are made. So are those of context windows that
        moved on, which neither this step nor the last one used.
        """
        if step is not self._steps[1]:
            self._steps = self._steps[1], step
        context = self._contexts.get((sequence, variant))
        if context is None:
            known = list(self._contexts.items())  # a copy, as other devices' threads may add to it
            for key, other in known:
                gone = key[0] is sequence and other.step is not step
                moved = key[0].whole is not None and all(other.step is not its for its in self._steps)
                if gone or moved:
                    self._contexts.pop(key, None)
            keep = sequence.whole is None or room()
            alike = next((c for (other, v), c in known if v == variant and sequence.same_prefix(other)), None)
            if alike is None:
                prefix = sum(len(s) for s in sequence.segments[: sequence.prefix])
                context = Context([compute(0, [])], prefix)
            else:
                past = alike.prefix_pieces()
                context = Context([*past, compute(sequence.prefix if past else 0, past)], alike.prefix)
            if keep:
                self._contexts[(sequence, variant)] = context
        context.step = step
        return context.pieces

    def target(self, key: tuple, compute: Callable[[], object]) -> object:
        if key not in self._targets:
            self._targets[key] = compute()
        return self._targets[key]


def outer_sample_wrapper(executor, *args, **kwargs):
    """Gives the sampling run a store of its own. The guider's model_options are a copy made for this run."""
    store = ContextStore()
    executor.class_obj.model_options["transformer_options"][STORE] = store
    try:
        return executor(*args, **kwargs)
    finally:
        store.waiting.release()


def add_to(patcher) -> None:
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, STORE, outer_sample_wrapper)
