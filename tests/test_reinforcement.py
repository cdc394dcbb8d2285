"""Reinforcement of the demonstration model: samples made many at once are those that users get, and rewards lead from
wrong ones to right ones."""

from __future__ import annotations

import random
from dataclasses import replace

import comfy.model_management
import pytest
import torch
from comfyui_lance.lance_model import nano as packed
from comfyui_lance.training import judge, reinforce, rollout, world
from safetensors.torch import load_file

import nodes

CPU = torch.device("cpu")
FEW = reinforce.Settings(
    prompts=2,
    group=4,
    steps=3,
    passes=1,
    updates=2,
    noises=1,
    kept=1,
    kinds=("single object", "image edit"),
    evaluate_every=0,
)


@pytest.fixture
def training(monkeypatch):
    monkeypatch.setattr(comfy.model_management, "in_training", True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text to image", "image edit", "text to video"])
def test_samples_are_those_of_the_sampler(kind, nano, monkeypatch):
    seed, prompt, theirs = 7, rollout.Prompt(kind, "some chance"), []
    its = reinforce.Reinforcement(packed.PACKED, FEW, CPU)
    (batch,) = rollout.in_batches([prompt], its.tokenizer, 1)
    pools = rollout.pooled(batch, its.autoencoder, CPU)
    noise = torch.randn(1, 48, *prompt.grid, generator=torch.Generator().manual_seed(seed))
    ours = rollout.sampled(its.start, pools, batch, noise, 6)

    def spied(*args, sampler=nodes.common_ksampler):
        out = sampler(*args)
        theirs.append(nano[0].model.process_latent_in(out[0]["samples"]))
        return out

    monkeypatch.setattr(nodes, "common_ksampler", spied)
    asked = judge.Judge(*nano, steps=6)
    with torch.inference_mode():
        if prompt.source:
            asked.edited(world.Edit(kind, prompt.source, prompt.sample.prompt, prompt.source), seed)
        else:
            asked.made(prompt.sample.prompt, seed, world.FRAMES if kind == "text to video" else 1)
    torch.testing.assert_close(ours, *theirs, atol=1e-3, rtol=1e-3)


def test_a_prompt_is_judged_by_its_own_rule():
    for kind in rollout.KINDS:
        prompt, other = rollout.Prompt(kind, "one"), rollout.Prompt(kind, "one")
        assert prompt.sample == other.sample and prompt.source == other.source
        assert not prompt.right(torch.zeros(world.FRAMES, world.SIDE, world.SIDE, 3).byte().numpy())
    scene = world.a_scene(random.Random("one"))
    assert rollout.Prompt("text to image", "one").sample.prompt == world.describe(scene)
    assert rollout.Prompt("text to image", "one").right(judge.image(scene).mul(255).byte().numpy())


def test_equal_rewards_ask_for_the_old_policy():
    torch.manual_seed(1)
    old, wanted, half = torch.randn(4, 3), torch.randn(4, 3), torch.full((4,), 0.5)
    velocity = old.clone().requires_grad_()
    least = reinforce.nft_loss(velocity, old, wanted, half, 0.5)
    least.backward()
    torch.testing.assert_close(velocity.grad, torch.zeros(4, 3))
    assert all(reinforce.nft_loss(old + torch.randn(4, 3), old, wanted, half, 0.5) > least for _ in range(10))


def test_rewards_lead_from_wrong_to_right():
    """Also where the old policy is the trained one itself, as at the start of a round."""
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    velocity = torch.zeros(1, 2, requires_grad=True)
    both, wanted, r = velocity.expand(2, -1), torch.cat([right, wrong]), torch.tensor([1.0, 0.0])
    reinforce.nft_loss(both, both, wanted, r, 1.0).backward()
    step = -velocity.grad[0]
    assert step[0] > 0 > step[1] and torch.isclose(step[0], -step[1])


def test_pairs_are_a_right_and_a_wrong_sample_of_one_prompt():
    right = torch.tensor([[True, True, False, True], [False] * 4, [True, False, False, True], [True] * 4])
    latents = torch.arange(16.0).reshape(16, 1, 1, 1, 1)
    made = rollout.Rollout(["a", "b", "c", "d"], latents, right)
    one, two = reinforce.paired(made)
    assert (one.prompts, two.prompts) == (["a"], ["c"])
    assert one.latents.flatten().tolist() == [0, 2] and two.latents.flatten().tolist() == [8, 9, 11, 10]


@pytest.mark.slow
def test_it_goes_on_where_it_was(training, tmp_path):
    """To the same bits; only what makes pictures has moved."""
    told = []
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = reinforce.reinforce(packed.PACKED, whole, replace(FEW, rounds=2), told.append)
    reinforce.reinforce(packed.PACKED, parts, replace(FEW, rounds=1), told.append)
    again = reinforce.reinforce(packed.PACKED, parts, replace(FEW, rounds=2), told.append)
    assert result.read_bytes() == again.read_bytes() and len(told) == 4
    before, after = load_file(packed.PACKED), load_file(result)
    assert before.keys() == after.keys() and all(weight.isfinite().all() for weight in after.values())
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved and all("vae." in name or any(part in name for part in reinforce.GENERATING) for name in moved)
    none = load_file(reinforce.reinforce(packed.PACKED, parts, replace(FEW, rounds=2, blend=0.0), told.append))
    assert all(torch.equal(weight, before[name]) for name, weight in none.items() if "vae." not in name)


@pytest.mark.slow
def test_what_is_not_learned_is_held(training):
    """A round with a pull on it strays less there than one without; and it is of kinds that are not learned."""
    strayed = []
    for keep in (0.0, 30.0):
        its = reinforce.Reinforcement(packed.PACKED, replace(FEW, passes=2, keep=keep, kept=3, rate=1e-3), CPU)
        others = its.elsewhere("others")
        kinds = {prompt.kind for _, made in others for prompt in made.prompts}
        assert len(kinds) == 3 and not kinds & set(FEW.kinds)
        its.learn()
        with torch.no_grad():
            far = [its.strayed_elsewhere(*other, torch.Generator().manual_seed(1)) for other in others]
        strayed.append(sum(far).item())
    assert 0 < strayed[1] < 0.7 * strayed[0]


def test_a_new_rate_counts_when_it_goes_on(tmp_path):
    module = torch.nn.ModuleDict({"time_embedder": torch.nn.Linear(1, 1)})
    reinforce.State(module, 1e-4).save(tmp_path / "state.pt")
    again = reinforce.State(module, 2e-4)
    again.load(tmp_path / "state.pt")
    assert again.optimizer.param_groups[0]["lr"] == 2e-4
