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
from ..lance_model.language import LanceTokenizer
from .autoencoder import NarrowTAEHV
from .model import Trainee
from .packed import pack, read_autoencoder, read_trainee
from .report import Report
from .rollout import KINDS, Prompt, Rollout, branches, guided, in_batches, pooled, rollout

ROWS = 384  # of latents that go through the model at once
LARGEST_ADVANTAGE = 3.0  # in deviations of a group's rewards
GENERATING = ("_moe_gen", "time_embedder", "vae2llm", "llm2vae")  # in names of what learns


@dataclass
class Settings:
    rounds: int = 100
    prompts: int = 48  # a round
    group: int = 16  # samples of a prompt
    steps: int = 6  # of the sampler
    noises: int = 4  # put on each sample
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
        for name, weight in trainee.named_parameters():
            weight.requires_grad_(any(part in name for part in GENERATING))
        self.learning = [weight for weight in trainee.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learning, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)

    def load(self, file: Path) -> None:
        saved = torch.load(file, weights_only=True)
        self.trainee.load_state_dict(saved["model"])
        self.old.load_state_dict(saved["old"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.round = saved["round"]

    def save(self, file: Path) -> None:
        saved = {"model": self.trainee.state_dict(), "old": self.old.state_dict()}
        saved |= {"optimizer": self.optimizer.state_dict(), "round": self.round}
        torch.save(saved, file.with_suffix(".partial"))
        file.with_suffix(".partial").replace(file)

    def follow(self, decay: float) -> None:
        """The old policy becomes a moving average with the trained one."""
        for old, new in zip(self.old.parameters(), self.trainee.parameters()):
            old.lerp_(new.detach(), 1 - decay)


def optimality(right: torch.Tensor) -> torch.Tensor:
    """Rewards [prompts, each] → r in 0..1, one half for a group's mean."""
    rewards = right.float()
    advantage = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, correction=0, keepdim=True) + 1e-6)
    return 0.5 + 0.5 * (advantage / LARGEST_ADVANTAGE).clamp(-1, 1)


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

    def loss(self, pools, its: Rollout, generator: torch.Generator) -> torch.Tensor:
        """Mean over the samples of prompts of which some are right and some are wrong, each with one noise."""
        settings, latents, grid = self.settings, its.latents, its.latents.shape[1:]
        u = torch.rand(len(latents), generator=generator)
        t = (3.5 * u / (1 + 2.5 * u)).clamp(min=0.02).to(self.device)
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        x = latents + t.view(-1, *[1] * len(grid)) * (noise - latents)
        velocity, *learned = guided(self.state.trainee, branches(self.state.trainee, pools, its.prompts), x, t)
        with torch.no_grad():
            old, *_ = guided(self.state.old, branches(self.state.old, pools, its.prompts), x, t)
            _, *kept = guided(self.start, branches(self.start, pools, its.prompts), x, t)
        loss = nft_loss(velocity, old, noise - latents, optimality(its.right).flatten(), settings.beta)
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
            useful += [(pools, part) for part in [undecided(its, settings.group)] if part.prompts]
        generator = torch.Generator().manual_seed(random.Random(chance).getrandbits(62))
        total = sum(len(its.latents) for _, its in useful)
        state.optimizer.zero_grad(set_to_none=True)
        for pools, its in useful:
            for _ in range(settings.noises):
                (self.loss(pools, its, generator) * len(its.latents) / total / settings.noises).backward()
        if useful:
            self.norm = torch.nn.utils.clip_grad_norm_(state.learning, 1.0).item()
            state.optimizer.step()
        state.follow(settings.decay)
        state.round += 1
        return shares

    def evaluate(self, trainee: Trainee) -> dict[str, float]:
        """Shares of right results by kind, of prompts that are not trained on; always the same."""
        count, shares = self.settings.evaluation_prompts, {}
        for kind in self.kinds:
            prompts = [Prompt(kind, f"held out {self.settings.seed} {i}") for i in range(count)]
            shown = self.rollouts(trainee, prompts, 1, f"held out {kind} {self.settings.seed}")
            shares[kind] = sum(its.right.sum().item() for _, its in shown) / count
        return shares


def undecided(its: Rollout, each: int) -> Rollout:
    """Of a rollout the prompts of which some samples are right and some are wrong."""
    some = [i for i, right in enumerate(its.right) if right.any() and not right.all()]
    latents = its.latents.unflatten(0, (-1, each))[some].flatten(0, 1)
    return Rollout([its.prompts[i] for i in some], latents, its.right[some])


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
    if settings.evaluate_every:
        report(f"held out, at first: {told(its.evaluate(its.start))}")
    while state.round < settings.rounds:
        shares = its.learn()
        report(f"{state.round}/{settings.rounds}: {told({k: sum(s) / len(s) for k, s in shares.items()})}, {its.norm:.3f}")
        state.save(file)
        if settings.evaluate_every and state.round % settings.evaluate_every == 0:
            report(f"held out, after {state.round} rounds: {told(its.evaluate(state.old))}")
    pack(result, dict(state.old.named_parameters()), its.autoencoder.fold(), its.rows)
    return result
