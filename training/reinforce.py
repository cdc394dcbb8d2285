"""The last stage of the demonstration model: reinforcement by the world's own rules, on what the model itself makes.

DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117), with guidance. In each round the old policy makes a group of samples
for each prompt, in a few steps and guided, as users sample; a rule tells which are right. Noise is put on them, and the
velocity that is learned from v₀, that of the old policy, is drawn to the right ones and away from the wrong ones:

    r · |v₊ − v|² + (1 − r) · |v₋ − v|²,  v₊ = (1 − β) v₀ + β v_θ,  v₋ = (1 + β) v₀ − β v_θ

v leads from a sample to noise, r in 0..1 is how much better than its group a sample is. Differences to the method as
published: v₀ and v_θ are the guided velocities, the gradient goes through both branches, and a pull holds each of the
two near the model that it began with. Only what makes pictures learns; what reads and answers stays as it is.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from safetensors import safe_open

from ..lance_model import nano
from ..lance_model.diffusion import LanceConfig
from ..lance_model.language import LanceTokenizer
from .autoencoder import NarrowTAEHV
from .data import Pools
from .model import Trainee
from .packed import pack, read_autoencoder, read_trainee
from .report import Report
from .rollout import KINDS, Prompt, Rollout, branches, guided, in_batches, pooled, rollout

ROWS = 384  # of latents that go through the model at once
MOST_PAIRS = 4  # of a group
GENERATING = ("_moe_gen", "time_embedder", "vae2llm", "llm2vae")  # in names of what learns


@dataclass
class Settings:
    rounds: int = 100
    prompts: int = 48  # a round
    group: int = 12  # samples of a prompt
    steps: int = 6  # of the sampler
    noises: int = 6  # put on each sample
    updates: int = 2  # a round
    rate: float = 1e-4
    beta: float = 1.0
    pull: float = 0.1
    decay: float = 0.0  # of the old policy towards the trained one, after each round
    kinds: tuple[str, ...] = tuple(KINDS)
    seed: int = 0
    evaluate_every: int = 10
    evaluation_prompts: int = 64  # of each kind


class State:
    """All that reinforcement changes."""

    def __init__(self, trainee: Trainee, rate: float):
        self.trainee, self.old, self.round = trainee, copy.deepcopy(trainee).requires_grad_(False), 0
        self.ahead = False  # whether the trained one differs from the old one
        for name, weight in trainee.named_parameters():
            weight.requires_grad_(any(part in name for part in GENERATING))
        self.learning = [weight for weight in trainee.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learning, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)

    def load(self, file: Path) -> None:
        saved = torch.load(file, weights_only=True)
        self.trainee.load_state_dict(saved["model"])
        self.old.load_state_dict(saved["old"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.round, self.ahead = saved["round"], saved["ahead"]

    def save(self, file: Path) -> None:
        saved = {"model": self.trainee.state_dict(), "old": self.old.state_dict()}
        saved |= {"optimizer": self.optimizer.state_dict(), "round": self.round, "ahead": self.ahead}
        torch.save(saved, file.with_suffix(".partial"))
        file.with_suffix(".partial").replace(file)

    def follow(self, decay: float) -> None:
        """The old policy becomes a moving average with the trained one."""
        for old, new in zip(self.old.parameters(), self.trainee.parameters()):
            old.lerp_(new.detach(), 1 - decay)
        self.ahead = decay > 0


def nft_loss(
    velocity: torch.Tensor, old: torch.Tensor, wanted: torch.Tensor, r: torch.Tensor, beta: float
) -> torch.Tensor:
    """Of velocities [B, ...] and optimality [B]; equation 5 of the paper, over β."""
    positive = (1 - beta) * old + beta * velocity
    negative = (1 + beta) * old - beta * velocity
    errors = [((v - wanted) ** 2).flatten(1).mean(1) for v in (positive, negative)]
    return (r * errors[0] + (1 - r) * errors[1]).mean() / beta


class Reinforcement:
    """A model that is reinforced, and the one that it began as."""

    def __init__(self, packed: Path, settings: Settings, device: torch.device):
        with safe_open(packed, "pt") as file:
            self.rows = file.get_tensor(nano.ROWS).tolist()
        self.settings, self.device, self.tokenizer = settings, device, LanceTokenizer()
        self.kinds = [kind for kind in settings.kinds if self._has_words_for(kind)]
        self.start = Trainee(self.rows, self.tokenizer)
        read_trainee(packed, self.start, self.rows)
        self.start.to(device).requires_grad_(False)
        self.autoencoder: NarrowTAEHV = read_autoencoder(packed).to(device).requires_grad_(False)
        self.state = State(copy.deepcopy(self.start), settings.rate)

    def _has_words_for(self, kind: str) -> bool:
        ids = {i for n in range(100) for i in self.tokenizer.ids(Prompt(kind, f"words {n}").sample.prompt)}
        return ids <= set(self.rows)

    def rollouts(self, trainee: Trainee, prompts: list[Prompt], each: int, seed: str) -> Iterator:
        """Pools and rollouts of batches of prompts."""
        generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(63))
        for batch in in_batches(prompts, self.tokenizer, ROWS // each):
            pools = pooled(batch, self.autoencoder, self.device)
            yield pools, rollout(trainee, pools, self.autoencoder, batch, each, self.settings.steps, generator)

    def loss(self, pools: Pools, pairs: Rollout, generator: torch.Generator) -> torch.Tensor:
        """Mean over right and wrong samples in turn; the two of a pair get the same noise, so that they differ in what is
        right alone."""
        settings, state, latents = self.settings, self.state, pairs.latents
        t = levels(len(latents) // 2, generator).repeat_interleave(2).to(self.device)
        noise = torch.randn(len(latents) // 2, *latents.shape[1:], generator=generator)
        noise = noise.repeat_interleave(2, dim=0).to(self.device)
        x = latents + t[:, None, None, None, None] * (noise - latents)
        velocity, *learned = guided(state.trainee, branches(state.trainee, pools, pairs.prompts), x, t)
        with torch.no_grad():
            old = velocity.detach()
            if state.ahead:
                old, *_ = guided(state.old, branches(state.old, pools, pairs.prompts), x, t)
            _, *kept = guided(self.start, branches(self.start, pools, pairs.prompts), x, t)
        loss = nft_loss(velocity, old, noise - latents, pairs.right.flatten().float(), settings.beta)
        return loss + settings.pull * sum(((a - b) ** 2).mean() for a, b in zip(learned, kept))

    def learn(self) -> dict[str, list[float]]:
        """A round: the shares of right samples by kind, of each prompt."""
        settings, state = self.settings, self.state
        chance = f"reinforce {settings.seed} {state.round}"
        kinds = [self.kinds[i % len(self.kinds)] for i in range(settings.prompts)]
        prompts = [Prompt(kind, f"{chance} {i}") for i, kind in enumerate(kinds)]
        shares, useful = defaultdict(list), []
        for pools, its in self.rollouts(state.old, prompts, settings.group, chance):
            for prompt, right in zip(its.prompts, its.right):
                shares[prompt.kind].append(right.float().mean().item())
            useful += [(pools, pairs) for pairs in paired(its)]
        generator = torch.Generator().manual_seed(random.Random(chance).getrandbits(62))
        order = torch.randperm(len(useful), generator=generator).tolist()
        for part in range(settings.updates):
            self.update([useful[i] for i in order[part :: settings.updates]], generator)
        state.follow(settings.decay)
        state.round += 1
        return shares

    def update(self, useful: list[tuple[Pools, Rollout]], generator: torch.Generator) -> None:
        """A step along the gradient of all these."""
        settings, state = self.settings, self.state
        total = sum(len(pairs.latents) for _, pairs in useful) * settings.noises
        if not total:
            return
        state.optimizer.zero_grad(set_to_none=True)
        for pools, pairs in useful:
            for _ in range(settings.noises):
                (self.loss(pools, pairs, generator) * len(pairs.latents) / total).backward()
        self.norm = torch.nn.utils.clip_grad_norm_(state.learning, 1.0).item()
        state.optimizer.step()
        state.ahead = True

    def evaluate(self, trainee: Trainee) -> dict[str, float]:
        """Shares of right results by kind, of prompts that are not trained on; always the same."""
        count, shares = self.settings.evaluation_prompts, {}
        for kind in self.kinds:
            prompts = [Prompt(kind, f"held out {self.settings.seed} {i}") for i in range(count)]
            shown = self.rollouts(trainee, prompts, 1, f"held out {kind} {self.settings.seed}")
            shares[kind] = sum(its.right.sum().item() for _, its in shown) / count
        return shares


def paired(its: Rollout) -> list[Rollout]:
    """Of a rollout as many right samples as wrong ones, in turn, of each prompt that has both; prompts with as many
    pairs are together."""
    by_count = defaultdict(list)
    latents = its.latents.unflatten(0, its.right.shape)
    for prompt, made, right in zip(its.prompts, latents, its.right):
        count = min(int(right.sum()), int((~right).sum()), MOST_PAIRS)
        if count:
            pairs = torch.stack([made[right][:count], made[~right][:count]], dim=1)
            by_count[count].append((prompt, pairs.flatten(0, 1)))
    return [
        Rollout([p for p, _ in some], torch.cat([x for _, x in some]), torch.tensor([[True, False] * count] * len(some)))
        for count, some in by_count.items()
    ]


def levels(count: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels spread as the sampler's steps are."""
    shift, t = LanceConfig.sampling_settings["shift"], torch.rand(count, generator=generator)
    return shift * t / (1 + (shift - 1) * t)


def told(shares: dict[str, float]) -> str:
    return ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())


def reinforce(packed: Path, out: Path, settings: Settings, report: Callable[[str], None]) -> Path:
    """Trains a packed model further; the result is `out`/reinforced.safetensors. Stopped, it goes on where it was."""
    comfy.model_management.in_training = True
    comfy.utils.PROGRESS_BAR_ENABLED = False
    its = Reinforcement(packed, settings, torch.device("cpu"))
    state, file, result = its.state, out / "reinforce.pt", out / "reinforced.safetensors"
    if file.exists():
        state.load(file)
    if settings.evaluate_every and not state.round:
        report(f"held out, at first: {told(its.evaluate(its.start))}")
    while state.round < settings.rounds:
        shares = its.learn()
        report(f"{state.round}/{settings.rounds}: {told({k: sum(s) / len(s) for k, s in shares.items()})}, {its.norm:.3f}")
        state.save(file)
        if settings.evaluate_every and state.round % settings.evaluate_every == 0:
            report(f"held out, after {state.round} rounds: {told(its.evaluate(state.old))}")
    pack(result, dict(state.old.named_parameters()), its.autoencoder.fold(), its.rows)
    return result
