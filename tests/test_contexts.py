"""Prompts are computed once a run: what branches share, what they compute apart, and when a context is dropped."""

import gc
import weakref

import comfy.hooks
import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfyui_lance.lance_model import context, diffusion, language, loading
from support.sampling import PROMPT, Probe, edit, ksample, relative, sample, schedule, scheduled_lora

from nodes import (
    ConditioningCombine,
)


def test_thirty_steps_evaluate_56_targets_in_30_passes_and_two_contexts(lance, pair, noise, contexts):
    probe = Probe()
    ksample(probe.attach(lance[0]), noise, pair)
    assert (len(probe.branches), probe.evaluations) == (30, 56)
    assert len(contexts) == 2


def test_branches_share_system_prompt_and_media(lance, noise, contexts):
    model, clip, _ = lance
    pair = edit(clip)
    ksample(model, noise, pair, 4)
    cond, uncond = (encoded[0][1]["lance_sequence"] for encoded in pair)
    lengths = [sum(len(s) for s in sequence.context) for sequence in (cond, uncond)]
    head = sum(len(s) for s in cond.segments[:3])
    assert sum(contexts) == sum(lengths) - head and head > 5 * min(contexts)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("case", ["text", "edit", "combined", "masked"])
def test_branches_in_one_pass_compute_what_they_do_apart(lance, noise, monkeypatch, case, batch):
    model, clip, _ = lance
    positive, negative = edit(clip) if case == "edit" else language.encode_pair(clip, PROMPT)
    if case == "combined":
        (positive,) = ConditioningCombine().combine(positive, language.encode_pair(clip, "A blue boat.")[0])
    noise, settings = torch.cat([noise, noise.flip(-1)][:batch]), {}
    if case == "masked":
        mask = torch.ones(batch, 1, 1, 4, 6)
        mask[..., :2] = 0
        settings = {"latent": torch.zeros_like(noise), "mask": mask}
    results, branches = {}, 2 + (case == "combined")
    for limit in (noise[:, :1].numel(), noise[:, :1].numel() - 1):
        monkeypatch.setattr(diffusion, "ONE_PASS", limit)
        probe = Probe()
        results[limit] = sample(probe.attach(model), positive, negative, noise, schedule(4, 3.5), **settings)
        assert max(probe.branches) == (1 if len(results) > 1 else branches)
    together, apart = results.values()
    assert relative(together, apart) < 1e-5


def test_attention_overrides_see_one_branch_at_a_time(lance, pair, noise):
    model, seen = lance[0].clone(), set()

    def override(attention, q, *args, transformer_options, **kwargs):
        if "block_index" in transformer_options:
            seen.add((len(q), *transformer_options["cond_or_uncond"], len(transformer_options["uuids"])))
        return attention(q, *args, transformer_options=transformer_options, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    changed, plain = (ksample(patcher, noise, pair, 4) for patcher in (model, lance[0]))
    assert torch.equal(changed, plain) and seen == {(1, 0, 1), (1, 1, 1)}


def test_a_batch_that_a_node_has_split_is_refused(lance, pair, noise):
    model = lance[0].clone()

    def halves(apply, args):
        return torch.cat([apply(x, t, **args["c"]) for x, t in zip(args["input"].split(1), args["timestep"].split(1))])

    model.set_model_unet_function_wrapper(halves)
    with pytest.raises(ValueError, match="asked for 1 latents with 2 prompts"):
        ksample(model, noise, pair, 4)


def test_shared_head_computes_the_same(lance, noise, monkeypatch):
    model, clip, _ = lance
    pair = edit(clip)
    shared = ksample(model, noise, pair, 4)
    monkeypatch.setattr("comfyui_lance.lance_model.sequence.Sequence.same_prefix", lambda self, other: False)
    assert torch.allclose(shared, ksample(model, noise, pair, 4), atol=1e-5)


def test_contexts_die_with_the_run_even_when_it_is_interrupted(lance, pair, noise, monkeypatch):
    stores = []
    original = context.ContextStore.__init__

    def remembering(self):
        original(self)
        stores.append(weakref.ref(self))

    def interrupt(*args):
        raise comfy.model_management.InterruptProcessingException()

    monkeypatch.setattr(context.ContextStore, "__init__", remembering)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        ksample(lance[0], noise, pair, 4, callback=interrupt)
    before = ksample(lance[0], noise, pair, 4)
    gc.collect()
    assert len(stores) == 2 and all(store() is None for store in stores)
    assert torch.equal(before, ksample(lance[0], noise, pair, 4))


def test_hooked_weights_have_contexts_of_their_own(lance, pair, noise, contexts):
    """A LoRA scheduled on one prompt changes that prompt's context, and again when its strength changes."""
    plain = ksample(lance[0], noise, pair, 6)
    contexts.clear()
    hooked = comfy.hooks.set_hooks_for_conditioning(pair[0], scheduled_lora([1.0, 0.2]))
    out = ksample(lance[0], noise, (hooked, pair[1]), 6)
    assert len(contexts) == 3
    assert relative(out, plain) > 1e-3
    assert torch.allclose(ksample(lance[0], noise, pair, 6), plain, atol=1e-5)


def test_contexts_of_strengths_that_are_gone_are_dropped(lance, pair, noise, monkeypatch):
    held, original = [], context.ContextStore.context

    def counting(self, *args):
        pieces = original(self, *args)
        held.append(len(self._contexts))
        return pieces

    monkeypatch.setattr(context.ContextStore, "context", counting)
    hooked = comfy.hooks.set_hooks_for_conditioning(pair[0], scheduled_lora([1 - i / 10 for i in range(10)]))
    ksample(lance[0], noise, (hooked, pair[1]), 10)
    assert max(held) == 2


def test_two_models_in_one_run_keep_their_own_contexts(lance, tiny, pair, noise, contexts):
    """Core's guider for two models runs both over one set of options."""
    other = loading.load(tiny / "Lance_3B" / "model.safetensors", weight_dtype="fp8_e4m3fn")[0].model
    store = context.ContextStore()
    options = {context.STORE: store, "sigmas": torch.ones(1)}
    sequence = pair[0][0][1]["lance_sequence"]
    settings = {"transformer_options": options, "sequences": (sequence,)}
    alone = other.apply_model(noise, torch.ones(1), transformer_options={}, sequences=(sequence,))
    lance[0].model.apply_model(noise, torch.ones(1), **settings)
    assert torch.equal(other.apply_model(noise, torch.ones(1), **settings), alone)
    assert len(contexts) == 3
