"""What waits in the computer's memory comes in time: weights a block ahead, contexts a layer ahead."""

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfyui_lance.lance_model import language, layer, streaming, transformer
from comfyui_lance.lance_model.layer import attend
from support.sampling import sample, schedule

CPU = torch.device("cpu")


@pytest.fixture()
def prefetched(monkeypatch):
    """What ComfyUI is asked to page in, and in between which layers run: a queue that stands open as on a card."""
    events = []

    def queue(blocks, device, options):
        assert options["prefetch_dynamic_vbars"] is False  # set, as there is no dynamic VRAM here
        events.append(("queue", len(blocks)))
        return blocks

    def pop(blocks, device, module):
        wanted = None if module is None else len(list(module.parameters()))
        events.append(("pop", wanted))

    monkeypatch.setattr(transformer, "make_prefetch_queue", queue)
    monkeypatch.setattr(transformer, "prefetch_queue_pop", pop)
    return events


def test_every_pass_has_its_weights_paged_in_a_layer_ahead(lance, prefetched):
    model, clip, _ = lance
    pair = language.encode_pair(clip, "a fox")
    sample(model, *pair, torch.randn(1, 48, 1, 4, 6), schedule(2, 3.5))
    layers = len(model.model.diffusion_model.layers)
    passes = [events for events in _split(prefetched)]
    assert all(len(events) == layers + 1 and events[-1] is None for events in passes)
    whole = len(list(model.model.diffusion_model.layers[0].parameters()))
    # Two contexts of text need the understanding expert alone, passes both.
    assert [events[0] for events in passes] == [whole // 2, whole // 2, whole, whole]


def test_a_questions_weights_are_the_understanding_experts(lance, prefetched):
    model, clip, _ = lance
    language.answer(clip, model, language.Request("What is this?"), max_length=2)
    whole = len(list(model.model.diffusion_model.layers[0].parameters()))
    first = _split(prefetched)[0]
    assert first[:-1] == [whole // 2] * len(model.model.diffusion_model.layers)


def _split(events: list[tuple]) -> list[list]:
    """Per queue, how many weights each pop asks for."""
    out: list[list] = []
    for kind, value in events:
        if kind == "queue":
            out.append([])
        else:
            out[-1].append(value)
    return out


class Stream:
    def __init__(self, events: list):
        self.events = events

    def wait_stream(self, other) -> None:
        self.events.append("waits for what was computed")


def test_a_context_that_waits_comes_a_layer_ahead(monkeypatch):
    events: list[str] = []
    waiting = [[(torch.full((1, 2, 1, 4), i), torch.full((1, 2, 1, 4), -i))] * 1 for i in range(3)]
    pieces = [[pair for layers in waiting for pair in layers]]

    def cast(x, dtype, device, non_blocking, stream):
        events.append(f"copies {abs(int(x[0, 0, 0, 0]))}")
        return x.clone()

    monkeypatch.setattr(comfy.model_management, "get_offload_stream", lambda device: Stream(events))
    monkeypatch.setattr(comfy.model_management, "current_stream", lambda device: None)
    monkeypatch.setattr(comfy.model_management, "cast_to", cast)
    for i, ((keys, values),) in enumerate(streaming.layers(pieces, 3, torch.device("meta"))):
        events.append(f"computes {i}")
        assert (keys == i).all() and (values == -i).all()
    assert events == [
        *["copies 0"] * 2,
        *["copies 1"] * 2,
        "computes 0",
        "waits for what was computed",
        *["copies 2"] * 2,
        "computes 1",
        "waits for what was computed",
        "computes 2",
        "waits for what was computed",
    ]


def test_what_waits_is_let_go_with_the_run(monkeypatch):
    pinned: list[int] = []
    monkeypatch.setattr(comfy.model_management, "pin_memory", lambda x: pinned.append(x.data_ptr()) or True)
    monkeypatch.setattr(comfy.model_management, "unpin_memory", lambda x: pinned.remove(x.data_ptr()))
    waiting = streaming.Waiting()
    kept = waiting.take(torch.arange(4.0))
    assert len(pinned) == 1 and torch.equal(kept, torch.arange(4.0))
    waiting.release()
    assert not pinned


def test_weights_that_share_a_buffer_do_not_meet(lance, monkeypatch):
    """With one stream for offloading, what is cast next is written where the last one was."""
    model, clip, _ = lance
    pair, noise = language.encode_pair(clip, "a fox"), torch.randn(1, 48, 1, 4, 6)
    expected = sample(model, *pair, noise, schedule(2, 3.5))
    buffer, cast = torch.zeros(1 << 20), comfy.ops.cast_bias_weight

    def shared(module, *args, **kwargs):
        weight, bias, stream = cast(module, *args, **kwargs)
        place = buffer[: weight.numel()].view(weight.shape)
        return place.copy_(weight), bias, stream

    monkeypatch.setattr(layer.comfy.ops, "cast_bias_weight", shared)
    assert torch.equal(sample(model, *pair, noise, schedule(2, 3.5)), expected)


@pytest.mark.parametrize(
    "nvidia, dtype, grouped",
    [(True, torch.bfloat16, True), (True, torch.float32, False), (False, torch.bfloat16, False)],
)
def test_keys_are_repeated_where_fused_attention_takes_no_groups(nvidia, dtype, grouped, monkeypatch):
    q, k, v = (torch.randn(1, n, heads, 8).to(dtype) for n, heads in ((5, 4), (9, 2), (9, 2)))
    options = []

    def attention(q, k, v, heads, skip_reshape, **kwargs):
        options.append((k.shape[1], kwargs))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **kwargs).transpose(1, 2).flatten(2)

    expected = attend(attention, q, k, v)
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(comfy.model_management, "is_nvidia", lambda: nvidia)
    found = attend(attention, q, k, v)
    assert options[0] == (2, {"enable_gqa": True})
    assert options[1] == ((2, {"enable_gqa": True}) if grouped else (4, {}))
    torch.testing.assert_close(found, expected)
