"""What moves between the computer's memory and a card, on a pretend card whose tensors have shapes but no numbers.

PyTorch keeps such a device for the rest of the process, so `test_devices.py` runs this in one of its own.
"""

from collections import Counter

import comfy.ops
import pytest
import torch
from comfyui_lance.lance_model.layer import Run
from comfyui_lance.lance_model.streaming import Waiting
from comfyui_lance.lance_model.transformer import LanceTransformer
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

CARD = "pretend_card"
DIMS = {"hidden": 64, "layers": 3, "inner": 96, "heads": 4, "kv_heads": 1, "head_dim": 16, "channels": 48}
CONTEXT = 300  # tokens
CONTEXT_BYTES = CONTEXT * DIMS["layers"] * 2 * DIMS["kv_heads"] * DIMS["head_dim"] * 2


@pytest.fixture(scope="module")
def fake_tensors():
    register = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if register is None:
        pytest.skip("this PyTorch cannot pretend to have another device")
    from torch._subclasses.fake_tensor import FakeTensorMode

    register(CARD)
    return FakeTensorMode


class Moved(TorchDispatchMode):
    """Bytes that go from one device to another."""

    def __init__(self):
        super().__init__()
        self.bytes: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        copies = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}
        source = args[copies[function]] if function in copies else out
        if source is not out and source.device != out.device:
            self.bytes[source.device.type, out.device.type] += out.nbytes
        return out


def frequencies(batch: int, n: int) -> torch.Tensor:
    return torch.empty(batch, n, 1, DIMS["head_dim"] // 2, 2, 2, device=CARD)


def a_pass(model: LanceTransformer, contexts: list) -> torch.Tensor:
    """A pass on the card, one picture for each branch."""
    n, settings = len(contexts), {"device": CARD, "dtype": torch.bfloat16}
    return model(
        torch.empty(n, 48, 1, 4, 6, **settings),
        torch.ones(n, device=CARD),
        brackets=torch.empty(n, 2, DIMS["hidden"], **settings),
        frequencies=(frequencies(n, 2), frequencies(n, 24)),
        tables=[torch.empty(size, d, **settings) for size, d in ((1, 20), (4, 20), (6, 24))],
        past=[[context] for context in contexts],
    )


def unused(model: LanceTransformer) -> int:
    """Bytes of weights that sampling never needs: of the last layer's brackets only keys and values are read."""
    last = dict(model.layers[-1].named_parameters()) | {"norm": model.language_model.model.norm.weight}
    used = ("input_layernorm.", "self_attn.k_", "self_attn.v_")
    return sum(w.nbytes for name, w in last.items() if "_moe_gen" not in name and not name.startswith(used))


@pytest.mark.parametrize("kept", [CARD, "cpu"])
def test_a_context_that_waits_in_the_computers_memory_moves_once_a_pass(fake_tensors, kept):
    with fake_tensors():
        settings = {"device": CARD, "dtype": torch.bfloat16}
        model = LanceTransformer(**DIMS, **settings, operations=comfy.ops.disable_weight_init)
        tokens = torch.empty(1, CONTEXT, DIMS["hidden"], **settings)
        positions = frequencies(1, CONTEXT), frequencies(1, 0)
        with Moved() as made:
            context, _ = model.context(
                tokens, None, positions, [Run(True, CONTEXT, 0)], keep=Waiting().take if kept == "cpu" else None
            )
        with Moved() as used:
            velocity = a_pass(model, [context])
    assert {x.device.type for layer in context for x in layer} == {kept} and velocity.device.type == CARD
    moves = kept == "cpu"
    assert made.bytes == ({(CARD, "cpu"): CONTEXT_BYTES} if moves else {})
    assert used.bytes == ({("cpu", CARD): CONTEXT_BYTES} if moves else {})


def test_weights_that_wait_in_the_computers_memory_move_once_for_both_branches(fake_tensors):
    with fake_tensors():
        model = LanceTransformer(**DIMS, device="cpu", dtype=torch.bfloat16, operations=comfy.ops.manual_cast)
        moved = []
        for tokens in ([300], [300, 20]):
            contexts = [
                [(torch.empty(1, n, 1, DIMS["head_dim"], device=CARD, dtype=torch.bfloat16),) * 2] * DIMS["layers"]
                for n in tokens
            ]
            with Moved() as used:
                a_pass(model, contexts)
            moved.append(used.bytes["cpu", CARD])
    assert moved == [sum(w.nbytes for w in model.parameters()) - unused(model)] * 2
