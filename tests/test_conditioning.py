"""What core's nodes do to conditionings and latents: prompts for a part of the steps or of the picture, and image to
image. Each is compared with the same thing done by hand."""

import random

import comfy.patcher_extension
import comfy.samplers
import pytest
import torch
from comfyui_lance.lance_model import guidance, language, media, resolution
from comfyui_lance.lance_model.sequence import Label
from comfyui_lance.nodes.guidance import LanceGuidance
from comfyui_lance.training import judge, world
from support.sampling import sample, schedule

from nodes import (
    ConditioningCombine,
    ConditioningSetMask,
    ConditioningSetTimestepRange,
    ConditioningZeroOut,
    VAEDecode,
    common_ksampler,
)

FOX, BOAT = "A red fox sleeps in the snow.", "A blue boat under a bridge."
STEPS = 6


def encoded(lance, prompt: str) -> tuple[list, list]:
    return language.encode_pair(lance[1], prompt)


def euler(model, positive, negative, x: torch.Tensor, sigmas: torch.Tensor, cfg: float = 4.0) -> torch.Tensor:
    """One run of the sampler for each step."""
    for here, there in zip(sigmas, sigmas[1:]):
        clean = sample(model, positive, negative, x / here, torch.stack([here, torch.zeros(())]), cfg)
        x = x + (x - clean) / here * (there - here)
    return x


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_prompt_may_hold_for_a_part_of_the_steps(lance, noise, cfg):
    model, sigmas, change = lance[0], schedule(STEPS, 3.5), 3
    (fox, negative), (boat, _) = encoded(lance, FOX), encoded(lance, BOAT)
    sampling = model.get_model_object("model_sampling")
    percents = torch.linspace(0, 1, 1001)
    reached = [percent for percent in percents.tolist() if sampling.percent_to_sigma(percent) < sigmas[change - 1]]
    at = next(percent for percent in reached if sampling.percent_to_sigma(percent) > sigmas[change])
    (first,) = ConditioningSetTimestepRange().set_range(fox, 0.0, at)
    (then,) = ConditioningSetTimestepRange().set_range(boat, at, 1.0)
    (both,) = ConditioningCombine().combine(first, then)
    out = sample(model, both, negative, noise, sigmas, cfg)
    middle = euler(model, fox, negative, noise, sigmas[: change + 1], cfg)
    by_hand = euler(model, boat, negative, middle, sigmas[change:], cfg)
    torch.testing.assert_close(out, by_hand, atol=1e-4, rtol=1e-4)
    for alone in (fox, boat):
        assert (out - sample(model, alone, negative, noise, sigmas, cfg)).norm() / out.norm() > 1e-3


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_a_prompt_may_hold_for_a_part_of_the_picture(lance, noise, strength):
    """One step: each place has the velocity of its own prompt, and where two overlap their weighted mean."""
    model, sigmas = lance[0], torch.tensor([0.8, 0.0])
    (fox, negative), (boat, _) = encoded(lance, FOX), encoded(lance, BOAT)
    left, right = torch.zeros(1, 64, 96), torch.zeros(1, 64, 96)
    left[..., :64], right[..., 32:] = 1, 1
    (masked,) = ConditioningSetMask().append(fox, left, "default", strength)
    (other,) = ConditioningSetMask().append(boat, right, "default", 1.0)
    (both,) = ConditioningCombine().combine(masked, other)
    out = sample(model, both, negative, noise, sigmas, cfg=1.0)
    alone = [sample(model, prompt, negative, noise, sigmas, cfg=1.0) for prompt in (fox, boat)]
    torch.testing.assert_close(out[..., :2], alone[0][..., :2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out[..., 4:], alone[1][..., 4:], atol=1e-5, rtol=1e-4)
    mean = (strength * alone[0] + alone[1]) / (strength + 1)
    torch.testing.assert_close(out[..., 2:4], mean[..., 2:4], atol=1e-5, rtol=1e-4)
    assert (alone[0] - alone[1]).abs().mean() > 1e-3


@pytest.mark.parametrize("denoise", [0.25, 0.5, 1.0])
def test_image_to_image_starts_from_the_noised_picture(lance, noise, denoise):
    """KSampler with denoise below 1: the last steps of a longer schedule, from (1 - t)·clean + t·noise."""
    model, steps = lance[0], 4
    positive, negative = encoded(lance, FOX)
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(3))
    latent = lance[2].encode(picture)
    seen = []

    def note(executor, x, timesteps, *args, **kwargs):
        seen.append((x.clone(), timesteps.clone()))
        return executor(x, timesteps, *args, **kwargs)

    noted = model.clone()
    noted.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, note)
    settings = (5, steps, 4.0, "euler", "simple", positive, negative, {"samples": latent})
    (out,) = common_ksampler(noted, *settings, denoise=denoise)
    clean = model.model.process_latent_in(latent)
    drawn = torch.randn(latent.shape, generator=torch.manual_seed(5))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", int(steps / denoise))[
        -steps - 1 :
    ]
    start = (1 - sigmas[0]) * clean + sigmas[0] * drawn
    x, timesteps = seen[0]
    assert timesteps.tolist() == pytest.approx([float(sigmas[0])] * len(timesteps))
    for branch in x:
        torch.testing.assert_close(branch[None], start, atol=1e-5, rtol=1e-4)
    by_hand = euler(model, positive, negative, start, sigmas)
    torch.testing.assert_close(model.model.process_latent_in(out["samples"]), by_hand, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("unconditional", guidance.UNCONDITIONALS)
@pytest.mark.parametrize("edit", [False, True], ids=["picture", "edit"])
def test_a_zeroed_conditioning_is_that_of_an_empty_prompt(lance, noise, edit, unconditional):
    """To the bit: with other models a negative is often made of the positive by Conditioning Zero Out."""
    (model,) = LanceGuidance.execute(lance[0], 0.0, 1.0, "global", unconditional).result
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(3))
    source = [media.preprocess(picture, resolution.OwnSize(), Label.SOURCE, lance[2])] if edit else []
    positive, empty = language.encode_pair(lance[1], FOX, "", source)
    (zeroed,) = ConditioningZeroOut().zero_out(positive)
    sigmas = schedule(2, 3.5)
    for pair, expected in (((positive, zeroed), (positive, empty)), ((zeroed, empty), (empty, empty))):
        assert torch.equal(sample(model, *pair, noise, sigmas), sample(model, *expected, noise, sigmas))


@torch.inference_mode()
def test_less_denoise_keeps_more_of_the_picture(nano):
    """The demonstration model, asked for something else than the picture shows, which it soon paints over."""
    model, clip, vae = nano
    scene = world.single(random.Random(6))
    given = judge.image(scene)
    prompt = language.encode_pair(clip, "a small cyan star on the left on a black background")
    latent, distance, seen = {"samples": vae.encode(given)}, {}, {}
    for denoise in (0.03, 0.06, 1.0):
        (out,) = common_ksampler(model, 7, 10, 4.0, "euler", "simple", *prompt, latent, denoise=denoise)
        (images,) = VAEDecode().decode(vae, out)
        distance[denoise] = float((images - given).abs().mean())
        seen[denoise] = world.detect((images[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    assert 3 * distance[0.03] < distance[0.06] < distance[1.0] / 3, distance
    assert world.same_things(seen[0.03][1], scene) and seen[0.03][0] == scene.background
    assert judge.names(seen[1.0][1]) == ["cyan star"] and seen[1.0][0] == "black"


def test_weights_embeddings_and_lora_tags_are_plain_words(lance):
    """The README says so: nothing of them is dropped, and none weighs."""
    words = "a (red:1.2) fox, embedding:style <lora:style:0.8>"
    (_, options), *_ = language.encode_pair(lance[1], words)[0]
    ids = [s.ids for s in options["lance_sequence"].segments if s.label == Label.PROMPT]
    assert [lance[1].decode(i) for i in ids] == [words]
