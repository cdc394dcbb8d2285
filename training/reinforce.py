"""The last stage of the demonstration model: reinforcement by the world's own rules, on what the model itself makes.

DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117), with guidance. In each round the old policy makes a group of samples
for each prompt, in a few steps and guided, as users sample; a rule tells which are right. Noise is put on them, and the
velocity that is learned from v₀, that of the old policy, is drawn to the right ones and away from the wrong ones:

    r · |v₊ − v|² + (1 − r) · |v₋ − v|²,  v₊ = (1 − β) v₀ + β v_θ,  v₋ = (1 + β) v₀ − β v_θ

v leads from a sample to noise, r in 0..1 is how much better than its group a sample is. Differences to the method as
published: v₀ and v_θ are the guided velocities, the gradient goes through both branches, and a pull holds each of the
two near the model that it began with: on what is learned, and more strongly on what is not. The result may lie between
that one and the trained one, where less is learned and what is not asked for has lost less (Wortsman et al. 2022,
arXiv 2109.01903). Only what makes pictures learns; what reads and answers stays as it is.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import comfy.model_management
import torch

from ..lance_model import nano
from ..lance_model.diffusion import LanceConfig
from ..lance_model.language import LanceTokenizer
from .autoencoder import NarrowTAEHV
from .data import Pools
from .model import Trainee
from .packed import pack, read_autoencoder, read_rows, read_trainee
from .report import Report
from .rollout import KINDS, Prompt, Rollout, branches, guided, in_batches, pooled, rollout
from .saved import save_whole

ROWS = 256  # of latents that go through the model at once
LEAST = 0.03  # of a kind's weight in the prompts, which is at most a quarter more
MOST_PAIRS = 4  # of a group
# Few: of all kinds at once a round has too few prompts to learn from.
LEARNED = ("single object", "two objects", "attribute binding")
GENERATING = ("_moe_gen", "time_embedder", "vae2llm", "llm2vae")  # in names of what learns


@dataclass
class Settings:
    rounds: int = 9
    prompts: int = 120  # a round
    group: int = 12  # samples of a prompt
    steps: int = 6  # of the sampler
    passes: int = 2  # over a round's samples
    updates: int = 3  # a pass
    noises: int = 2  # put on each sample in a pass
    rate: float = 2e-4
    beta: float = 1.0
    pull: float = 0.2  # on what is learned
    keep: float = 0.4  # on what is not
    kept: int = 80  # prompts a round of what is not learned
    decay: float = 0.0  # of the old policy towards the trained one, after each round
    blend: float = 1.0  # of the way from the model that it began with to the trained one is the result
    kinds: tuple[str, ...] = LEARNED
    seed: int = 0
    evaluate_every: int = 3
    evaluation_prompts: int = 64  # of each kind


@dataclass
class Pairs:
    """Latents [2 · pairs, 48, t, h, w] of prompts with as many pairs each: a right sample and a wrong one in turn."""

    prompts: list[Prompt]
    latents: torch.Tensor


class State:
    """All that reinforcement changes."""

    def __init__(self, trainee: Trainee, rate: float):
        self.trainee, self.old, self.round = trainee, copy.deepcopy(trainee).requires_grad_(False), 0
        self.ahead = False  # whether the trained one differs from the old one
        self.shares: dict[str, float] = {}  # of right samples, by kind
        for name, weight in trainee.named_parameters():
            weight.requires_grad_(any(part in name for part in GENERATING))
        self.learning = [weight for weight in trainee.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learning, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)

    def load(self, file: Path) -> None:
        saved, rate = torch.load(file, weights_only=True), self.optimizer.param_groups[0]["lr"]
        for name in ("trainee", "old", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        self.optimizer.param_groups[0]["lr"] = rate  # as it is asked for now
        self.round, self.ahead, self.shares = saved["round"], saved["ahead"], saved["shares"]

    def save(self, file: Path) -> None:
        saved = {name: getattr(self, name) for name in ("round", "ahead", "shares")}
        saved |= {name: getattr(self, name).state_dict() for name in ("trainee", "old", "optimizer")}
        save_whole(saved, file)

    def follow(self, decay: float) -> None:
        """The old policy becomes a moving average with the trained one."""
        for old, new in zip(self.old.parameters(), self.trainee.parameters()):
            old.lerp_(new.detach(), 1 - decay)
        self.ahead = decay > 0


def nft_loss(
    velocity: torch.Tensor, old: torch.Tensor, wanted: torch.Tensor, r: torch.Tensor, beta: float
) -> torch.Tensor:
    """Of velocities [B, ...] and optimality [B], over β: the loss of the paper, in which `old` is fixed."""
    old = old.detach()
    positive = (1 - beta) * old + beta * velocity
    negative = (1 + beta) * old - beta * velocity
    errors = [((v - wanted) ** 2).flatten(1).mean(1) for v in (positive, negative)]
    return (r * errors[0] + (1 - r) * errors[1]).mean() / beta


class Reinforcement:
    """A model that is reinforced, and the one that it began as."""

    def __init__(self, packed: Path, settings: Settings, device: torch.device):
        self.rows = read_rows(packed)
        self.settings, self.device, self.tokenizer = settings, device, LanceTokenizer()
        self.kinds = [kind for kind in settings.kinds if self._has_words_for(kind)]
        self.others = [kind for kind in KINDS if kind not in settings.kinds and self._has_words_for(kind)]
        self.start = Trainee(self.rows, self.tokenizer)
        read_trainee(packed, self.start, self.rows)
        self.start.to(device).requires_grad_(False)
        self.autoencoder: NarrowTAEHV = read_autoencoder(packed).to(device).requires_grad_(False)
        self.state = State(copy.deepcopy(self.start), settings.rate)

    def _has_words_for(self, kind: str) -> bool:
        ids = {i for n in range(25) for i in self.tokenizer.ids(Prompt(kind, f"words {n}").sample.prompt)}
        return ids <= set(self.rows)

    def rollouts(self, trainee: Trainee, prompts: list[Prompt], each: int, seed: str) -> Iterator:
        """Pools and rollouts of batches of prompts."""
        generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(63))
        for batch in in_batches(prompts, self.tokenizer, ROWS // each):
            pools = pooled(batch, self.autoencoder, self.device)
            yield pools, rollout(trainee, pools, self.autoencoder, batch, each, self.settings.steps, generator)

    def loss(self, pools: Pools, pairs: Pairs, noises: int, generator: torch.Generator) -> torch.Tensor:
        """Mean over right and wrong samples in turn, with several noises each. The two of a pair get the same, so that
        they differ in what is right alone."""
        settings, state = self.settings, self.state
        latents = pairs.latents.unflatten(0, (-1, 2)).repeat_interleave(noises, dim=0).flatten(0, 1)
        t = levels(len(latents) // 2, generator).repeat_interleave(2).to(self.device)
        noise = torch.randn(len(latents) // 2, *latents.shape[1:], generator=generator)
        noise = noise.repeat_interleave(2, dim=0).to(self.device)
        x = latents + t[:, None, None, None, None] * (noise - latents)
        velocity, *learned = guided(state.trainee, branches(state.trainee, pools, pairs.prompts), x, t)
        with torch.no_grad():
            old = velocity
            if state.ahead:
                old, *_ = guided(state.old, branches(state.old, pools, pairs.prompts), x, t)
        r = torch.tensor([1.0, 0.0], device=self.device).repeat(len(latents) // 2)
        loss = nft_loss(velocity, old, noise - latents, r, settings.beta)
        return loss + settings.pull * self.strayed(learned, pools, pairs.prompts, x, t)

    def strayed(
        self, learned: list[torch.Tensor], pools: Pools, prompts: list[Prompt], x: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """How far velocities of both branches are from those of the model that it began with."""
        with torch.no_grad():
            _, *first = guided(self.start, branches(self.start, pools, prompts), x, t)
        return sum(((a - b) ** 2).mean() for a, b in zip(learned, first))

    def strayed_elsewhere(self, pools: Pools, its: Rollout, generator: torch.Generator) -> torch.Tensor:
        """The same of samples of what is not learned."""
        t = levels(len(its.latents), generator).to(self.device)
        noise = torch.randn(its.latents.shape, generator=generator).to(self.device)
        x = its.latents + t[:, None, None, None, None] * (noise - its.latents)
        _, *learned = guided(self.state.trainee, branches(self.state.trainee, pools, its.prompts), x, t)
        return self.strayed(learned, pools, its.prompts, x, t)

    def prompts(self, chance: str) -> list[Prompt]:
        """Of a round: most of the kinds that are as often right as wrong, some of each."""
        known = (self.state.shares.get(kind, 0.5) for kind in self.kinds)
        weights = [share * (1 - share) + LEAST for share in known]
        kinds = random.Random(chance).choices(self.kinds, weights, k=self.settings.prompts)
        return [Prompt(kind, f"{chance} {i}") for i, kind in enumerate(kinds)]

    def elsewhere(self, chance: str) -> list[tuple[Pools, Rollout]]:
        """What the model made, when it began, of all that is not learned."""
        kinds = itertools.islice(itertools.cycle(self.others), self.settings.kept)
        prompts = [Prompt(kind, f"{chance} {i}") for i, kind in enumerate(kinds)]
        return list(self.rollouts(self.start, prompts, 1, chance))

    def learn(self) -> dict[str, float]:
        """A round: the shares of right samples by kind."""
        settings, state = self.settings, self.state
        chance = f"reinforce {settings.seed} {state.round}"
        shares, useful = defaultdict(list), []
        for pools, its in self.rollouts(state.old, self.prompts(chance), settings.group, chance):
            for prompt, right in zip(its.prompts, its.right):
                shares[prompt.kind].append(right.float().mean().item())
            useful += [(pools, pairs) for pairs in paired(its)]
        others = self.elsewhere(f"{chance} rest")
        generator = torch.Generator().manual_seed(random.Random(chance).getrandbits(62))
        for _ in range(settings.passes):
            order = torch.randperm(len(useful), generator=generator).tolist()
            for part in range(settings.updates):
                some = [useful[i] for i in order[part :: settings.updates]]
                self.update(some, others[part :: settings.updates], generator)
        state.follow(settings.decay)
        state.round += 1
        shares = {kind: sum(shares[kind]) / len(shares[kind]) for kind in self.kinds if shares[kind]}
        for kind, share in shares.items():
            state.shares[kind] = (state.shares.get(kind, share) + share) / 2
        return shares

    def update(
        self, useful: list[tuple[Pools, Pairs]], others: list[tuple[Pools, Rollout]], generator: torch.Generator
    ) -> None:
        """A step along the gradient of all these."""
        settings, state = self.settings, self.state
        if not useful:
            return
        total = sum(len(pairs.latents) for _, pairs in useful) * settings.noises
        state.optimizer.zero_grad(set_to_none=True)
        for pools, pairs in useful:
            most = max(1, ROWS // len(pairs.latents))
            for done in range(0, settings.noises, most):
                noises = min(most, settings.noises - done)
                loss = self.loss(pools, pairs, noises, generator)
                (loss * noises * len(pairs.latents) / total).backward()
        total = sum(len(its.latents) for _, its in others)
        for pools, its in others:
            loss = settings.keep * self.strayed_elsewhere(pools, its, generator)
            (loss * len(its.latents) / total).backward()
        torch.nn.utils.clip_grad_norm_(state.learning, 1.0)
        state.optimizer.step()
        state.ahead = True

    def result(self) -> Trainee:
        """The model that it has come to, `blend` of the way from the one that it began with."""
        result = copy.deepcopy(self.start)
        torch._foreach_lerp_(list(result.parameters()), list(self.state.old.parameters()), self.settings.blend)
        return result

    def pack(self, file: Path) -> None:
        pack(file, dict(self.result().named_parameters()), self.autoencoder.fold(), self.rows)

    def evaluate(self, trainee: Trainee) -> dict[str, float]:
        """Shares of right results by kind, of prompts that are not trained on; always the same."""
        count, shares = self.settings.evaluation_prompts, {}
        for kind in self.kinds:
            prompts = [Prompt(kind, f"held out {self.settings.seed} {i}") for i in range(count)]
            shown = self.rollouts(trainee, prompts, 1, f"held out {kind} {self.settings.seed}")
            shares[kind] = sum(its.right.sum().item() for _, its in shown) / count
        return shares


def paired(its: Rollout) -> list[Pairs]:
    """Of a rollout as many right samples as wrong ones, in turn, of each prompt that has both; prompts with as many
    pairs are together."""
    by_count = defaultdict(list)
    latents = its.latents.unflatten(0, its.right.shape)
    for prompt, made, right in zip(its.prompts, latents, its.right):
        count = min(int(right.sum()), int((~right).sum()), MOST_PAIRS)
        if count:
            pairs = torch.stack([made[right][:count], made[~right][:count]], dim=1)
            by_count[count].append((prompt, pairs.flatten(0, 1)))
    return [Pairs([prompt for prompt, _ in some], torch.cat([made for _, made in some])) for some in by_count.values()]


def levels(count: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels spread as the sampler's steps are."""
    shift, t = LanceConfig.sampling_settings["shift"], torch.rand(count, generator=generator)
    return shift * t / (1 + (shift - 1) * t)


def told(shares: dict[str, float]) -> str:
    return ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())


def reinforce(packed: Path, out: Path, settings: Settings, report: Callable[[str], None]) -> Path:
    """Trains a packed model further; the result is `out`/reinforced.safetensors. Stopped, it goes on where it was."""
    comfy.model_management.in_training = True
    out.mkdir(parents=True, exist_ok=True)
    its = Reinforcement(packed, settings, comfy.model_management.get_torch_device())
    state, file, result = its.state, out / "reinforce.pt", out / "reinforced.safetensors"
    if file.exists():
        state.load(file)
    elif settings.evaluate_every:
        report(f"held out, at first: {told(its.evaluate(its.start))}")
    while state.round < settings.rounds:
        shares = its.learn()
        report(f"round {state.round}/{settings.rounds}: {told(shares)}")
        state.save(file)
        if settings.evaluate_every and (state.round % settings.evaluate_every == 0 or state.round == settings.rounds):
            report(f"held out, after {state.round} rounds: {told(its.evaluate(its.result()))}")
            its.pack(result)
    its.pack(result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Reinforce a packed demonstration model.")
    parser.add_argument("--packed", type=Path, default=nano.PACKED, help="the model to begin with")
    parser.add_argument("--out", type=Path, default=Path("nano_training"), help="folder for its state and the result")
    for setting in fields(Settings):
        if setting.name != "kinds":
            name, default = setting.name.replace("_", "-"), setting.default
            parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=LEARNED, help="what prompts ask for")
    given = vars(parser.parse_args())
    reinforce(given.pop("packed"), given.pop("out"), Settings(**given), Report())


if __name__ == "__main__":
    main()
