"""The claims of the Lance paper (arXiv 2605.18678) in small: variants that train from nothing on equal terms, and how
they are judged on examples that no training has seen. Their world has one thing in a picture.

All begin with the autoencoder and the vision encoder of the model that comes with the plugin, as Lance begins with
those of others, and with the same other weights for the same seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch

from ..lance_model import nano, positions
from ..lance_model.language import LanceTokenizer
from . import data, world
from .data import Examples, Pools, make_pools
from .evaluation import MEASURES, evaluate
from .loss import loss_of
from .model import TRANSFORMER, Trainee, used_rows
from .packed import read_autoencoder, read_rows, read_trainee
from .report import Report
from .saved import save_whole
from .schedule import Stage
from .train import SUPERVISED, Settings, train

MIXTURE = {"t2i": 3, "edit": 4, "caption": 1.5, "question": 1.5}
STAGES = (Stage("all tasks", 1.0, MIXTURE, MIXTURE, adaptive=True),)
SAMPLER_STEPS = 12


@dataclass(frozen=True)
class Scale:
    steps: int = 1000
    layers: int = 3
    batch: int = 16
    edits: int = 1500  # that are trained on; there are twice as many pictures
    held_out: int = 150  # edits
    prompts: int = 40  # of each task that is judged
    evaluations: int = 4  # by which the adaptive mixture goes


@dataclass(frozen=True)
class Variant:
    """What differs in training. Without MaPE a model is judged without it as well."""

    tasks: tuple[str, ...] = tuple(MIXTURE)  # that it trains on: those examples that the joint training draws of them
    mape: bool = True
    one_expert: bool = False
    adaptive: bool = False

    @contextmanager
    def in_place(self) -> Iterator[None]:
        with ExitStack() as patches:
            patches.enter_context(mock.patch.multiple(world, a_scene=world.single, an_edit=an_edit_of_one))
            if not self.mape:
                patches.enter_context(mock.patch.object(positions, "_mape", lambda sequence, plain: plain))
            yield

    def settings(self, out: Path, scale: Scale, seed: int) -> Settings:
        return Settings(
            out=out,
            steps=scale.steps,
            seed=seed,
            evaluate_every=scale.steps // scale.evaluations if self.adaptive else 0,
            fixed_mixture=not self.adaptive,
            processes=1,
            stages=STAGES,
            tasks=self.tasks,
            largest_batch=scale.batch,
            transformer=replace(TRANSFORMER, layers=scale.layers),
            one_expert=self.one_expert,
        )


JOINT = "joint"
VARIANTS = {
    JOINT: Variant(),
    "without MaPE": Variant(mape=False),
    "one expert": Variant(one_expert=True),
    "pictures alone": Variant(("t2i",)),
    "edits alone": Variant(("edit",)),
    "answers alone": Variant(("caption", "question")),
    "adaptive mixture": Variant(adaptive=True),
}


def an_edit_of_one(rng: random.Random) -> world.Edit:
    """It recolours, moves or changes the background."""
    while True:
        edit = rng.choice(world.EDITS)(rng)
        if len(edit.source.things) == len(edit.target.things) == 1:
            return edit


def pools(file: Path, edits: int, seed: str) -> Pools:
    """Pictures, edits of them and what is said of them; made unless `file` has them."""
    if not file.exists():
        examples = Examples(random.Random(seed))
        for _ in range(edits):
            edit = an_edit_of_one(examples.rng)
            source, target = examples.picture(edit.source), examples.picture(edit.target)
            data.edit(examples, edit, source, target)
            data.of_picture(examples, source)
            data.of_picture(examples, target)
        examples.clip(world.a_clip(examples.rng))  # pools have at least one; nothing is said of it
        autoencoder, device = read_autoencoder(nano.PACKED), torch.device("cpu")
        save_whole(make_pools(examples, autoencoder, LanceTokenizer(), device, Report()), file)
    return torch.load(file, weights_only=False)


def shipped_vision() -> dict[str, torch.Tensor]:
    trainee = Trainee([0], LanceTokenizer())
    read_trainee(nano.PACKED, trainee, [0])
    return trainee.language.visual.state_dict()


def run(folder: Path, name: str, seed: int, scale: Scale) -> dict[str, dict[str, float]]:
    """Measures of a variant: `losses` and shares of `right` results by task, of those that it trains on.

    `folder` keeps them, with what all runs share and the state of one that was interrupted.
    """
    out, variant = folder / f"{name} {seed}", VARIANTS[name]
    out.mkdir(parents=True, exist_ok=True)
    result, packed = out / "result.json", out / SUPERVISED
    if not result.exists():
        pools(folder / "pools.pt", scale.edits, "trained on")
        held_out = pools(folder / "held_out.pt", scale.held_out, "held out")
        vae = read_autoencoder(nano.PACKED).fold()
        with variant.in_place():
            settings = variant.settings(out, scale, seed)
            train(0, settings, folder / "pools.pt", vae, shipped_vision(), Report(out))
            judged = [task for task in variant.tasks if task in MEASURES]
            measured = {
                "losses": losses(packed, settings, held_out),
                "right": evaluate(packed, scale.prompts, SAMPLER_STEPS, seed=2, tasks=judged),
            }
        result.write_text(json.dumps(measured))
    return json.loads(result.read_text())


@torch.no_grad()
def losses(packed: Path, settings: Settings, held_out: Pools) -> dict[str, float]:
    """Mean losses by task of a packed model on held-out examples; these, noises and times are the same for all."""
    tokenizer = LanceTokenizer()
    rows = sorted({*read_rows(packed), *used_rows(tokenizer, held_out.samples())})
    trainee = Trainee(rows, tokenizer, settings.transformer)
    read_trainee(packed, trainee, rows)
    found = {}
    for task in settings.tasks:
        total, count = 0.0, 0
        for i, bucket in enumerate(held_out.buckets[task].values()):
            torch.manual_seed(i)
            total += len(bucket) * loss_of(trainee, held_out, bucket, drop_prompt=False).item()
            count += len(bucket)
        found[task] = total / count
    return found
