"""Lance under ComfyUI's samplers, guiders, conditioning nodes, step caches and memory management."""

import comfy.hooks
import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow, ModelSamplingSD3
from comfyui_lance.lance_model import language, loading
from comfyui_lance.nodes.guidance import LanceGuidance, LanceScheduler
from support.parity_case import load_case
from support.sampling import PROMPT, Probe, edit, ksample, lora_patches, relative, sample, schedule

from nodes import (
    CLIPTextEncode,
    ConditioningAverage,
    ConditioningCombine,
    ConditioningConcat,
    ConditioningSetArea,
)


@pytest.mark.parametrize("name", ["t2i", "t2v"])
def test_ksampler_follows_the_exact_schedule(name, lance, parity_folder):
    model, clip, _ = lance
    case = load_case(parity_folder, name)
    pair = language.encode_pair(clip, case.settings["prompt"], target="video" if name == "t2v" else "image")
    noise = case.latent("noise")
    exact = sample(model, *pair, noise, schedule(30, 3.5))
    assert relative(ksample(model, noise, pair), exact) < 1e-3


def test_the_scheduler_node_is_the_reference_schedule(lance):
    sigmas = LanceScheduler.execute(lance[0], 30, 1.0).result[0]
    assert torch.allclose(sigmas, schedule(30, 3.5), atol=1e-7)
    half = LanceScheduler.execute(lance[0], 10, 0.5).result[0]
    assert torch.allclose(half, schedule(20, 3.5)[-11:], atol=1e-7)


@pytest.mark.parametrize(
    "patch", [lambda m: ModelSamplingSD3().patch(m, 3.5)[0], lambda m: ModelSamplingAuraFlow().patch_aura(m, 3.5)[0]]
)
def test_flow_shift_nodes_with_the_same_shift_change_nothing(patch, lance, pair, noise):
    assert torch.allclose(ksample(patch(lance[0]), noise, pair, 8), ksample(lance[0], noise, pair, 8), atol=1e-5)
    assert (
        relative(ksample(ModelSamplingSD3().patch(lance[0], 1.0)[0], noise, pair, 8), ksample(lance[0], noise, pair, 8))
        > 1e-3
    )


@pytest.mark.parametrize(
    "sampler",
    ["heun", "dpmpp_2m", "dpmpp_2m_sde", "euler_ancestral", "res_multistep", "uni_pc", "lcm", "euler_cfg_pp", "er_sde"],
)
def test_samplers(sampler, lance, pair, noise):
    out = ksample(lance[0], noise, pair, 8, sampler, "beta", seed=3)
    assert out.isfinite().all() and 0.1 < out.std() < 10


def test_a_batch_is_what_single_runs_are(lance, pair, noise):
    other = torch.randn(noise.shape, generator=torch.Generator().manual_seed(2))
    batch = ksample(lance[0], torch.cat([noise, other]), pair, 6)
    single = torch.cat([ksample(lance[0], n, pair, 6) for n in (noise, other)])
    assert torch.allclose(batch, single, atol=1e-4)


def test_images_and_clips_from_core_latents(lance, pair):
    four_dimensional = torch.randn(1, 48, 4, 6)
    assert comfy.sample.fix_empty_latent_channels(lance[0], torch.zeros(1, 16, 4, 6)).shape == (1, 48, 1, 4, 6)
    assert ksample(lance[0], four_dimensional.unsqueeze(2), pair, 2).shape == (1, 48, 1, 4, 6)


def test_core_text_encode_is_the_image_template(lance, noise):
    model, clip, _ = lance
    core = [CLIPTextEncode().encode(clip, text)[0] for text in (PROMPT, "")]
    assert torch.equal(ksample(model, noise, core, 4), ksample(model, noise, language.encode_pair(clip, PROMPT), 4))


def test_negative_prompts_and_combined_prompts_count(lance, pair, noise):
    model, clip, _ = lance
    plain = ksample(model, noise, pair, 4)
    negative = language.encode_pair(clip, PROMPT, "blurry")[1]
    assert relative(ksample(model, noise, (pair[0], negative), 4), plain) > 1e-4
    both = ConditioningCombine().combine(pair[0], language.encode_pair(clip, "A blue bowl.")[0])[0]
    assert relative(ksample(model, noise, (both, pair[1]), 4), plain) > 1e-4
    area = ConditioningSetArea().append(pair[0], 32, 32, 0, 0, 1.0)[0]
    assert ksample(model, noise, (area, pair[1]), 4).isfinite().all()


def test_changed_conditioning_is_refused(lance, pair, noise):
    model, clip, _ = lance
    other = language.encode_pair(clip, "A red fox sleeps under a birch tree in the rain.")[0]
    changed = [
        ConditioningAverage().addWeighted(pair[0], other, 0.5)[0],
        ConditioningConcat().concat(pair[0], other)[0],
    ]
    for conditioning in changed:
        with pytest.raises(ValueError, match="has changed Lance's conditioning"):
            ksample(model, noise, (conditioning, pair[1]), 1)


def test_foreign_conditioning_is_refused(lance, noise):
    foreign = [[torch.zeros(1, 77, 64), {}]]
    with pytest.raises(ValueError, match="not encoded with Lance's CLIP"):
        ksample(lance[0], noise, (foreign, foreign), 1)


def test_guidance_node_changes_interval_and_renormalisation(lance, pair, noise):
    always = LanceGuidance.execute(lance[0], 0.0, 1.0, "global").result[0]
    probe = Probe()
    ksample(probe.attach(always), noise, pair)
    assert probe.evaluations == 60
    never = LanceGuidance.execute(lance[0], 1.0, 1.0, "global").result[0]
    assert torch.allclose(ksample(never, noise, pair, 4), ksample(lance[0], noise, pair, 4, cfg=1.0), atol=1e-5)
    plain = LanceGuidance.execute(lance[0], 0.4, 1.0, "none").result[0]
    channel = LanceGuidance.execute(lance[0], 0.4, 1.0, "channel").result[0]
    outputs = [ksample(m, noise, pair, 4) for m in (lance[0], plain, channel)]
    assert all(
        relative(a, b) > 1e-3 for a, b in ((outputs[0], outputs[1]), (outputs[0], outputs[2]), (outputs[1], outputs[2]))
    )


def test_renormalisation_is_the_formula(lance):
    cond, uncond = torch.randn(2, 48, 1, 4, 6), torch.randn(2, 48, 1, 4, 6)
    args = {"cond": cond, "uncond": uncond, "cond_scale": 4.0}
    v = uncond + 4 * (cond - uncond)
    for mode, norm in (
        ("global", lambda x: x.flatten(1).norm(dim=1).view(2, 1, 1, 1, 1)),
        ("channel", lambda x: x.norm(dim=1, keepdim=True)),
    ):
        model = LanceGuidance.execute(lance[0], 0.4, 1.0, mode).result[0]
        guided = model.model_options["sampler_cfg_function"](args)
        assert torch.allclose(guided, v * (norm(cond) / (norm(v) + 1e-8)).clamp(0, 1), atol=1e-5)


def test_kept_places_do_not_move(lance, pair):
    latent, noise = torch.randn(1, 48, 3, 4, 6), torch.randn(1, 48, 3, 4, 6)
    mask = torch.ones(1, 1, 3, 4, 6)
    mask[:, :, 0] = 0
    mask[:, :, 1:, :, :2] = 0.5
    out = sample(lance[0], *pair, noise, schedule(6, 3.5), latent=latent, mask=mask)
    assert torch.allclose(out[:, :, 0], latent[:, :, 0], atol=1e-5)
    assert relative(out[:, :, 1:], latent[:, :, 1:]) > 0.1
    soft, hard = (relative(out[:, :, 1:, :, part], latent[:, :, 1:, :, part]) for part in (slice(0, 2), slice(2, 6)))
    assert soft < hard


def test_rotary_frequencies_stay_in_float32(tiny, pair, noise):
    model, seen = loading.load(tiny / "Lance_3B" / "model.safetensors")[0].clone(), []
    model.set_model_compute_dtype(torch.bfloat16)

    def note(executor, x, *args, frequencies, **kwargs):
        seen.append((x.dtype, *(f.dtype for f in frequencies)))
        return executor(x, *args, frequencies=frequencies, **kwargs)

    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, note)
    ksample(model, noise, pair, 4)
    assert set(seen) == {(torch.bfloat16, torch.float32, torch.float32)}


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode])
def test_step_caches(node, lance, pair, noise):
    full = ksample(lance[0], noise, pair)
    computed = []
    hook = lance[0].model.diffusion_model.llm2vae.register_forward_hook(lambda *args: computed.append(1))
    cached = node.execute(lance[0], reuse_threshold=0.5, start_percent=0.15, end_percent=0.95, verbose=False).result[0]
    out = ksample(cached, noise, pair)
    hook.remove()
    assert len(computed) < 50
    assert relative(out, full) < 0.3
    assert torch.equal(ksample(lance[0], noise, pair), full), "the cache has touched the model or its inputs"


def test_a_step_cache_skips_steps_without_cfg_too(lance, pair, noise):
    probe = Probe()
    ksample(probe.attach(EasyCacheNode.execute(lance[0], 3.0, 0.0, 1.0, False).result[0]), noise, pair)
    assert probe.branches.count(1) < 4  # of the four steps outside the CFG interval


def test_weight_patches_count_and_leave_again(lance, pair, noise):
    plain = ksample(lance[0], noise, pair, 4)
    patched = lance[0].clone()
    assert len(patched.add_patches(lora_patches(0.1), 1.0)) == 2
    assert relative(ksample(patched, noise, pair, 4), plain) > 1e-3
    assert torch.allclose(ksample(lance[0], noise, pair, 4), plain, atol=1e-5)


def test_a_latent_of_another_vae_is_refused(lance, pair):
    with pytest.raises(ValueError, match="this latent has 16"):
        comfy.sample.sample(
            lance[0], torch.randn(1, 16, 1, 4, 6), 1, 4.0, "euler", "simple", *pair, torch.ones(1, 16, 1, 4, 6)
        )


def test_an_edit_of_another_size_is_refused(lance):
    with pytest.raises(ValueError, match="it is 8x8x1, the source 6x4x1"):
        ksample(lance[0], torch.randn(1, 48, 1, 8, 8), edit(lance[1]), 1)


def test_gradients_reach_the_weights_in_training(lance, pair, noise, monkeypatch):
    model, sequence = lance[0].model, pair[0][0][1]["lance_sequence"]
    plain = model.apply_model(noise, torch.ones(1), transformer_options={}, sequences=(sequence,))
    monkeypatch.setattr(comfy.model_management, "in_training", True)
    weight = model.diffusion_model.language_model.model.layers[0].self_attn.q_proj_moe_gen.weight.requires_grad_(True)
    trained = model.apply_model(noise, torch.ones(1), transformer_options={}, sequences=(sequence,))
    trained.square().mean().backward()
    assert torch.allclose(trained, plain, atol=1e-4) and weight.grad.abs().sum() > 0
    weight.grad = None
    weight.requires_grad_(False)


def test_partly_loaded_weights_compute_the_same(lance, pair, noise):
    model = lance[0]
    full = ksample(model, noise, pair, 4)
    small = model.clone()
    small.patch_model(lowvram_model_memory=model.model_size() // 3)
    cast = [m for m in small.model.modules() if getattr(m, "comfy_cast_weights", False)]
    assert cast, "nothing was left to be cast on the fly"
    assert torch.allclose(ksample(small, noise, pair, 4), full, atol=1e-5)
    small.detach()


def test_memory_estimate_counts_target_and_context(lance):
    model = lance[0].model
    base = model.memory_required([1, 48, 1, 48, 48], {"sequences": [[1, 1, 155]]})
    assert model.memory_required([2, 48, 1, 48, 48], {"sequences": [[1, 1, 155]]}) > 1.9 * base
    assert model.memory_required([1, 48, 1, 48, 48], {"sequences": [[1, 1, 3000]]}) > base
    assert model.memory_required([1, 48, 13, 48, 48], {"sequences": [[1, 1, 155]]}) > 10 * base
