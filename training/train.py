"""Trains the demonstration model from nothing: `bash scripts/train_nano.sh`.

An autoencoder and a vision encoder first, as Lance begins with those of others; then all but the autoencoder in the
stages of the paper, over the sequences, positions and modules that the plugin itself uses. It can be stopped and goes
on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch

from ..lance_model.config import TransformerConfig
from ..lance_model.language import LanceTokenizer
from . import autoencoder as autoencoders
from . import chart
from . import vision as encoders
from .data import LARGEST_BATCH, draw_batch, make_examples, make_pools
from .distributed import in_processes, reduce_gradients, shared_by_first
from .loss import loss_of
from .model import TRANSFORMER, Trainee, make_optimizers, used_rows
from .packed import pack, read_autoencoder, read_rows, read_trainee
from .report import PROGRESS, Losses, Report
from .saved import Saved, save_whole
from .schedule import STAGES, Stage, adapted, learning_rate, mixture, stage_at

MICROBATCHES = 4  # of different tasks in a step, shared among the processes
PROMPT_DROPPED = 0.1
REPORT_EVERY = 100  # steps
SUPERVISED = "supervised.safetensors"  # the model before reinforcement
LASTING = ("seed", "start", "autoencoder_steps", "vision_steps", "edits")  # what a folder's files are made with


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sensible_processes() -> int:
    return 1 if torch.cuda.is_available() else max(n for n in (1, 2, 4) if n <= os.cpu_count())


@dataclass
class Settings:
    out: Path = Path("nano_training")
    steps: int = 6000
    autoencoder_steps: int = 4000
    vision_steps: int = 1500
    edits: int = 16000
    rate: float = 2e-3
    seed: int = 0
    start: Path | None = None
    evaluate_every: int = 500
    evaluation_prompts: int = 10
    reinforcement_rounds: int = 9
    result_prompts: int = 50
    fixed_mixture: bool = False
    processes: int = field(default_factory=sensible_processes)
    # What `claims` varies
    stages: tuple[Stage, ...] = STAGES
    tasks: Collection[str] | None = None  # batches of others are drawn as ever, and left out; None: there are no others
    largest_batch: int = LARGEST_BATCH
    transformer: TransformerConfig = TRANSFORMER
    one_expert: bool = False

    @classmethod
    def from_command_line(cls) -> Settings:
        parser = argparse.ArgumentParser(description="Train the demonstration model.")
        parser.add_argument("--out", type=Path, help="folder for its state and the result")
        parser.add_argument("--steps", type=int, help="of the transformer")
        parser.add_argument("--autoencoder-steps", type=int, help="0: that of --start stays as it is")
        parser.add_argument("--vision-steps", type=int)
        parser.add_argument("--edits", type=int, help="edit pairs in the pool; the other tasks follow")
        parser.add_argument("--rate", type=float)
        parser.add_argument("--seed", type=int)
        parser.add_argument("--start", type=Path, help="a packed model to go on from, with the multi-task stage")
        parser.add_argument(
            "--evaluate-every", type=int, metavar="STEPS", help="judge what it makes, which takes minutes; 0: never"
        )
        parser.add_argument(
            "--fixed-mixture", action="store_true", help="of tasks: it does not follow how much of each is right"
        )
        parser.add_argument("--evaluation-prompts", type=int, help="of each task")
        parser.add_argument("--reinforcement-rounds", type=int, help="after all other stages")
        parser.add_argument("--result-prompts", type=int, help="of each task, for the table of results at the end")
        parser.add_argument(
            "--processes",
            type=int,
            choices=(1, 2, 4),
            help="that train together on a CPU; small operations gain little from threads",
        )
        settings = parser.parse_args(namespace=cls())
        if settings.start is None and settings.autoencoder_steps == 0:
            parser.error("--autoencoder-steps 0 keeps the autoencoder of --start, which is not given. Give one.")
        return settings


def hold_to(settings: Settings) -> None:
    """A folder that has been begun is gone on with as it was begun. Raises SystemExit where that is not asked for."""
    file, asked = settings.out / "settings.json", {name: getattr(settings, name) for name in LASTING}
    asked["start"] = None if settings.start is None else str(settings.start.resolve())
    if not file.exists():
        file.write_text(json.dumps(asked, indent=1))
    for name, begun in json.loads(file.read_text()).items():
        if asked[name] != begun:
            option = f"--{name.replace('_', '-')}"
            raise SystemExit(
                f"{settings.out} was begun with {option} {begun}, and {asked[name]} is asked for now. Go on as it was "
                "begun, or name another folder with --out."
            )


class State(Saved):
    """All that training changes. `average` are the moving averages of the parameters, which become the result."""

    def __init__(self, file: Path, seed: int, trainee: Trainee, rate: float):
        self.trainee, self.parameters = trainee, list(trainee.parameters())
        self.optimizers = make_optimizers(trainee, rate)
        self.average = torch.nn.ParameterList(p.detach().clone() for p in self.parameters).requires_grad_(False)
        muon, adamw = self.optimizers
        super().__init__(file, seed, model=trainee, muon=muon, adamw=adamw, average=self.average)

    def advance(self) -> None:
        """A step along the gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        parameters = [p.detach() for p in self.parameters]
        torch._foreach_lerp_(list(self.average), parameters, 1 - min(0.999, self.step / (self.step + 20)))

    def averaged(self) -> dict[str, torch.Tensor]:
        """Under all names that a parameter has: experts may share theirs."""
        average = dict(zip(self.parameters, self.average))
        return {name: average[p] for name, p in self.trainee.named_parameters(remove_duplicate=False)}


def train(rank: int, settings: Settings, pools: Path, vae: dict, vision: dict, report: Report) -> None:
    """One of the processes that train together, from the finished weights of autoencoder and vision encoder."""
    comfy.model_management.in_training = True
    comfy.utils.PROGRESS_BAR_ENABLED = False
    pools, tokenizer = torch.load(pools, weights_only=False), LanceTokenizer()
    rows = used_rows(tokenizer, pools.samples())
    if settings.start is not None:
        rows = sorted({*rows, *read_rows(settings.start)})
    trainee = begun_trainee(settings, rows, tokenizer, vision)
    result = settings.out / SUPERVISED
    state = State(settings.out / "state.pt", settings.seed, trainee, settings.rate)
    curated = pools.curated()
    begun = 0.0 if settings.start is None else sum(stage.share for stage in settings.stages[:2])
    rng = state.chance(rank)
    losses = Losses(state.step, settings.steps)
    if rank == 0:
        numbers = sum(p.numel() for p in state.parameters) / 1e6
        counts = f"{len(pools.samples())} samples, {len(rows)} rows, {numbers:.1f} M numbers"
        report(f"{counts}, {settings.processes} processes")

    while state.step < settings.steps:
        if state.due:
            rng = state.chance(rank)
        stage, progress = stage_at(begun + (1 - begun) * state.step / settings.steps, settings.stages)
        mix = mixture(stage, progress)
        if stage.adaptive and not settings.fixed_mixture:
            mix = adapted(mix, state.right)
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * learning_rate(state.step, settings.steps)
        for _ in range(MICROBATCHES // settings.processes):
            task = rng.choices(list(mix), list(mix.values()))[0]
            batch = draw_batch(rng, curated if stage.curated else pools, task, settings.largest_batch)
            dropped = batch[0].target is not None and rng.random() < PROMPT_DROPPED
            if settings.tasks is not None and task not in settings.tasks:
                continue
            loss = loss_of(trainee, pools, batch, dropped)
            (loss / MICROBATCHES).backward()
            if not dropped:
                losses.add(task, loss.item())
        reduce_gradients(state.parameters)
        state.advance()
        last = state.step == settings.steps
        saving = state.due or last
        evaluated = settings.evaluate_every and (state.step % settings.evaluate_every == 0 or last)
        if rank == 0 and (saving or evaluated):
            pack(result, state.averaged(), vae, rows)
        if evaluated:
            state.right = shared_by_first(quality(result, settings) if rank == 0 else None)
        if rank > 0:
            continue
        if state.step % REPORT_EVERY == 0 or last:
            report.losses(losses, state.step, stage.name)
        if evaluated:
            report.shares(state.right, state.step)
        if saving:
            state.save()


def begun_trainee(settings: Settings, rows: list[int], tokenizer: LanceTokenizer, vision: dict) -> Trainee:
    torch.manual_seed(settings.seed)
    trainee = Trainee(rows, tokenizer, settings.transformer, settings.one_expert).to(device())
    if settings.start is not None:
        read_trainee(settings.start, trainee, rows)
    trainee.language.visual.load_state_dict(vision)
    return trainee


def quality(result: Path, settings: Settings) -> dict[str, float]:
    """How much of what a packed model makes is right; training goes on as if nothing had been asked."""
    from .evaluation import MEASURES, evaluate  # brings all of ComfyUI's nodes, which training does not need

    tasks = [task for task in MEASURES if any(task in stage.end for stage in settings.stages)]
    return evaluate(result, settings.evaluation_prompts, tasks=tasks)


def trained_vision(settings: Settings, report: Report) -> dict[str, torch.Tensor]:
    """Weights of the vision encoder."""
    file = settings.out / "vision.pt"
    if not file.exists():
        torch.manual_seed(settings.seed)
        trainee = Trainee([0], LanceTokenizer()).to(device())
        visual = trainee.language.visual
        if settings.start is not None:
            read_trainee(settings.start, trainee, [0])
        else:
            state, pictures = settings.out / "vision_state.pt", 3 * settings.edits // 2
            encoders.train(state, settings.seed, visual, settings.vision_steps, pictures, device(), report)
        save_whole(visual.state_dict(), file)
    return torch.load(file, weights_only=True)


def main() -> None:
    settings = Settings.from_command_line()
    settings.out.mkdir(parents=True, exist_ok=True)
    hold_to(settings)
    report = Report(settings.out)
    start = None if settings.start is None else read_autoencoder(settings.start)
    file = settings.out / "autoencoder.pt"
    autoencoder = autoencoders.trained(file, settings.seed, settings.autoencoder_steps, report, start)
    vision = trained_vision(settings, report)
    pools = settings.out / "pools.pt"
    if not pools.exists():
        examples = make_examples(random.Random(settings.seed), settings.edits)
        made = make_pools(examples, autoencoder.to(device()), LanceTokenizer(), device(), report)
        save_whole(made, pools)
    given = (settings, pools, autoencoder.cpu().fold(), vision, report)
    in_processes(settings.processes, train, given)
    (settings.out / "progress.svg").write_text(chart.draw(chart.read(settings.out / PROGRESS)))
    reinforced_and_judged(settings, report)


def reinforced_and_judged(settings: Settings, report: Report) -> None:
    from . import reinforce
    from .evaluation import results

    last = settings.out / SUPERVISED
    models = {"supervised": last}
    if settings.reinforcement_rounds:
        its = reinforce.Settings(rounds=settings.reinforcement_rounds, seed=settings.seed)
        last = models["reinforced"] = reinforce.reinforce(last, settings.out, its, report)
    shutil.copyfile(last, settings.out / "nano.safetensors")
    if settings.result_prompts:
        (settings.out / "results.md").write_text(results(models, settings.result_prompts))
