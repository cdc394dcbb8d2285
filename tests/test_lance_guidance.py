"""Lance Guidance: the branch without the prompt as published, the least that renormalisation leaves, and guidance by
pictures.
"""

from dataclasses import replace

import comfy.hooks
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import BasicGuider, DualCFGGuider
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_lumina2 import RenormCFG
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_perpneg import PerpNegGuider
from comfyui_lance.lance_model import diffusion, language, media, tasks
from comfyui_lance.lance_model.positions import position_ids
from comfyui_lance.lance_model.resolution import PRESETS
from comfyui_lance.lance_model.sequence import CONDITIONING, Label
from comfyui_lance.nodes.guidance import LanceGuidance
from support.pictures import picture
from support.sampling import PROMPT, Probe, edit, ksample, relative, sample, schedule, scheduled_lora

from nodes import ConditioningCombine, ConditioningSetArea, ConditioningSetMask


def guided(model, unconditional="trained", minimum=0.0, image=1.0, renormalisation="global", start=0.4):
    return LanceGuidance.execute(model, start, 1.0, renormalisation, unconditional, minimum, image).result[0]


def sequence(conditioning):
    return conditioning[0][1][CONDITIONING]


def seen_sequences(model) -> tuple[object, dict]:
    """The model, and a dict that gets the sequence of each branch."""
    model, seen = model.clone(), {}

    def note(args):
        for i, conds in enumerate(args["conds"]):
            seen[i] = [cond["model_conds"]["sequences"].cond[0] for cond in conds]
        return args["conds_out"]

    model.set_model_sampler_pre_cfg_function(note)
    return model, seen


# As published


def test_the_defaults_change_nothing(lance, pair, noise):
    assert torch.equal(ksample(guided(lance[0]), noise, pair, 4), ksample(lance[0], noise, pair, 4))


@pytest.mark.parametrize("negative", ["", "blurry", 3 * PROMPT])
def test_as_published_the_template_keeps_the_place_that_it_has_after_the_prompt(lance, noise, negative):
    """Though no further to the front than the end of a long negative prompt."""
    pair = language.encode_pair(lance[1], PROMPT, negative)
    model, seen = seen_sequences(guided(lance[0], "published"))
    ksample(model, noise, pair, 1)
    cond, uncond, trained = (s.with_target(noise.shape[2:]) for s in (seen[0][0], seen[1][0], sequence(pair[1])))
    assert seen[0][0] is sequence(pair[0])
    *before, tail, target = position_ids(uncond)
    *as_trained, shorter_tail, its_target = position_ids(trained)
    assert torch.equal(torch.cat(before, dim=1), torch.cat(as_trained, dim=1)) and torch.equal(target, its_target)
    longer = len(negative) > len(PROMPT)
    assert torch.equal(tail, shorter_tail if longer else position_ids(cond)[-2])


def test_as_published_the_longest_of_several_prompts_counts_and_each_context_is_computed_once(lance, noise, contexts):
    short, negative = language.encode_pair(lance[1], "A fox.")
    (both,) = ConditioningCombine().combine(short, language.encode_pair(lance[1], PROMPT)[0])
    (negatives,) = ConditioningCombine().combine(negative, negative)
    model, seen = seen_sequences(guided(lance[0], "published"))
    ksample(model, noise, (both, negatives), 1)
    assert seen[1][0] is seen[1][1] and seen[1][0].gap == sequence(both[1:]).prompt_length
    assert len(contexts) == 3


def test_as_published_changes_what_is_made_and_what_is_given_stays(lance, pair):
    latent, noise = torch.randn(1, 48, 3, 4, 6), torch.randn(1, 48, 3, 4, 6)
    mask = torch.ones(1, 1, 3, 4, 6)
    mask[:, :, 0] = 0
    outs = [
        sample(model, *pair, noise, schedule(4, 3.5), latent=latent, mask=mask)
        for model in (lance[0], guided(lance[0], "published"))
    ]
    assert relative(*outs) > 1e-4 and all(torch.allclose(out[:, :, 0], latent[:, :, 0], atol=1e-5) for out in outs)


# The least that renormalisation leaves


@pytest.mark.parametrize("mode", ["global", "channel"])
def test_renormalisation_multiplies_by_no_less_than_its_minimum(lance, mode):
    cond, uncond = torch.randn(2, 48, 1, 4, 6), torch.randn(2, 48, 1, 4, 6)
    args = {"cond": cond, "uncond": uncond, "cond_scale": 4.0, "timestep": torch.ones(2)}
    free, least, whole = (
        guided(lance[0], minimum=minimum, renormalisation=mode).model_options["sampler_cfg_function"](args)
        for minimum in (0.0, 0.7, 1.0)
    )
    v = uncond + 4 * (cond - uncond)
    assert torch.allclose(whole, v) and (free.abs() < 0.7 * v.abs()).all()
    assert torch.allclose(least, 0.7 * v)


def test_a_minimum_without_renormalisation_is_refused(lance):
    with pytest.raises(ValueError, match="Set renormalisation_minimum to 0"):
        guided(lance[0], minimum=0.5, renormalisation="none")


# Guidance by pictures


def references(clip, target="image"):
    seen = [media.preprocess(shown[None], PRESETS["image 256"]) for shown in picture(n=2, seed=5)]
    given = [replace(medium, latent=torch.randn(1, 48, 1, 4, 6), label=Label.REFERENCE) for medium in seen]
    return language.encode_pair(clip, PROMPT, media=given, system=tasks.SUBJECT[target], target=target)


@pytest.mark.parametrize("make", [edit, references])
def test_the_branch_without_pictures_is_the_sequence_encoded_without_them(lance, make):
    negative = sequence(make(lance[1])[1])
    bare = negative.without_media
    assert bare is negative.without_media and bare.without_media is bare
    system = tasks.SUBJECT["image"] if make is references else None
    fresh = sequence(language.encode_pair(lance[1], PROMPT, system=system)[1])
    assert bare.token_ids()[:-2] == fresh.token_ids()[:-2] and bare.labels() == fresh.labels()
    assert torch.equal(bare.embeddings, fresh.embeddings) and bare.same_prefix(fresh)


@pytest.mark.parametrize("scale", [0.0, 2.5])
@pytest.mark.parametrize("make", [edit, references])
def test_the_sum_is_that_of_the_dual_cfg_guider(lance, noise, make, scale):
    pair = make(lance[1])
    system = tasks.SUBJECT["image"] if make is references else None
    bare = language.encode_pair(lance[1], PROMPT, system=system)[1]
    plain = guided(lance[0], renormalisation="none", start=0.0)
    guider = DualCFGGuider.execute(plain, *pair, bare, 4.0, scale, "regular").result[0]
    sigmas = schedule(4, 3.5)
    space = lance[0].get_model_object("latent_format")
    dual = guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas)
    out = sample(guided(plain, image=scale, renormalisation="none", start=0.0), *pair, noise, sigmas)
    assert relative(out, space.process_in(dual)) < 1e-5
    assert relative(out, sample(plain, *pair, noise, sigmas)) > 1e-3


def test_it_costs_a_third_pass_within_the_interval_and_one_short_context(lance, noise, contexts):
    pair = edit(lance[1])
    ksample(lance[0], noise, pair)
    before = contexts[:]
    contexts.clear()
    probe = Probe()
    ksample(probe.attach(guided(lance[0], image=2.0)), noise, pair)
    assert probe.evaluations == 56 + 26 and len(probe.branches) == 56
    assert contexts == [*before, sum(len(s) for s in sequence(pair[1]).without_media.context)]


def test_it_acts_at_a_cfg_of_one(lance, noise):
    pair = edit(lance[1])
    one, other = (ksample(guided(lance[0], image=scale), noise, pair, 4, cfg=1.0) for scale in (1.0, 3.0))
    assert relative(other, one) > 1e-3


@pytest.mark.parametrize("renormalisation", ["global", "none"])
def test_it_is_renormalised(renormalisation, lance, noise):
    model, conditional, result = guided(lance[0], image=8.0, renormalisation=renormalisation), [], []

    def before(args):
        conditional.append(float((args["input"] - args["conds_out"][0]).norm()))
        return args["conds_out"]

    def after(args):
        result.append(float((args["input"] - args["denoised"]).norm()))
        return args["denoised"]

    model.set_model_sampler_pre_cfg_function(before)
    model.set_model_sampler_post_cfg_function(after)
    ksample(model, noise, edit(lance[1]), 4)
    within = [after <= before * 1.0001 for before, after in zip(conditional, result)]
    assert all(within) == (renormalisation == "global")


@pytest.mark.parametrize("case", ["apart", "batch", "published", "negative prompt", "area", "mask", "hooks", "NAG"])
def test_it_works_with(case, lance, noise, monkeypatch):
    pair, published = edit(lance[1]), "published" if case == "published" else "trained"
    plain = guided(lance[0], published)
    if case == "apart":
        monkeypatch.setattr(diffusion, "ONE_PASS", 0)
    if case == "batch":
        noise = torch.cat([noise, noise.flip(-1)])
    if case == "negative prompt":
        pair = pair[0], edit(lance[1], "blurry")[0]
    if case == "area":
        pair = tuple(ConditioningSetArea().append(c, 32, 32, 0, 0, 1.0)[0] for c in references(lance[1]))
        pair = tuple(ConditioningCombine().combine(one, other)[0] for one, other in zip(pair, references(lance[1])))
    if case == "mask":
        mask = torch.zeros(1, 64, 96)
        mask[:, :, 48:] = 1
        pair = tuple(ConditioningSetMask().append(c, mask, "default", 1.0)[0] for c in pair)
    if case == "hooks":
        group = scheduled_lora([1.0, 0.2])
        pair = tuple(comfy.hooks.set_hooks_for_conditioning(c, group) for c in pair)
    if case == "NAG":
        plain = NAGuidance.execute(plain, 5.0, 0.5, 1.5).result[0]
    model = guided(plain, published, image=2.0)
    out, without = (ksample(m, noise, pair, 4) for m in (model, plain))
    assert out.isfinite().all() and relative(out, without) > 1e-3
    if case == "apart":
        monkeypatch.undo()
        assert relative(ksample(model, noise, pair, 4), out) < 1e-5
    if case == "batch":
        assert relative(out[:1], ksample(model, noise[:1], pair, 4)) < 1e-4


@pytest.mark.parametrize("cache", [EasyCacheNode, LazyCacheNode])
def test_step_caches_skip_with_it(cache, lance, noise):
    pair, probe = edit(lance[1]), Probe()
    model = guided(lance[0], image=2.0)
    full = ksample(model, noise, pair)
    cached = cache.execute(model, 0.2, 0.15, 0.95, False).result[0]
    out = ksample(probe.attach(cached), noise, pair)
    assert relative(out, full) < 0.2 and probe.evaluations < 82 - 10


def test_it_works_in_context_windows(lance):
    pair = references(lance[1], "video")
    noise = torch.randn(1, 48, 5, 4, 6, generator=torch.Generator().manual_seed(1))
    settings = (3, 1, "standard_static", 1, False, "pyramid", 2, False)
    out, without = (
        ksample(ContextWindowsManualNode.execute(guided(lance[0], image=scale), *settings).result[0], noise, pair, 4)
        for scale in (2.0, 1.0)
    )
    assert out.shape == noise.shape and out.isfinite().all() and relative(out, without) > 1e-3


def test_where_it_cannot_act_one_sentence_says_so(lance, pair, noise):
    model, edits, sigmas = guided(lance[0], image=2.0), edit(lance[1]), schedule(1, 3.5)
    with pytest.raises(ValueError, match="shows no pictures.*Connect that of Lance Encode Image Edit"):
        ksample(model, noise, pair, 1)
    with pytest.raises(ValueError, match="shows no pictures"):
        ksample(model, noise, (edits[0], pair[1]), 1)
    with pytest.raises(ValueError, match="Another node has put a CFG of its own"):
        ksample(RenormCFG.execute(model, 100.0, 1.0).result[0], noise, edits, 1)
    for guider in (
        BasicGuider.execute(model, edits[0]),
        DualCFGGuider.execute(model, *edits, pair[1], 4.0, 2.0, "regular"),
        PerpNegGuider.execute(model, *edits, pair[1], 4.0, 1.0),
    ):
        with pytest.raises(ValueError, match="works with a positive and a negative.*image_guidance to 1"):
            guider.result[0].sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas)
