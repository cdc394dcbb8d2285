"""How the demonstration model is trained: stages, the adaptive mixture, the curated set, stopping and going on."""

from __future__ import annotations

import random
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_lance.lance_model import nano as packed
from comfyui_lance.lance_model.language import LanceTokenizer
from comfyui_lance.training import autoencoder, chart, data, evaluation, schedule, train, world
from comfyui_lance.training import packed as packing
from comfyui_lance.training.report import Losses, Report
from comfyui_lance.training.saved import Saved

SCENE = world.two(random.Random(3))


class Stopped(Exception):
    pass


def test_a_folder_is_gone_on_with_as_it_was_begun(tmp_path):
    begun = train.Settings(out=tmp_path, edits=100)
    for again in (begun, replace(begun, steps=9, rate=1e-3)):
        train.hold_to(again)
    with pytest.raises(SystemExit, match="was begun with --edits 100, and 200 is asked for now. Go on"):
        train.hold_to(replace(begun, edits=200))
    with pytest.raises(SystemExit, match="was begun with --start None, and /.*/other is asked for now"):
        train.hold_to(replace(begun, start=tmp_path / "other"))


def test_the_stages_follow_each_other():
    names = [schedule.stage_at(i / 100)[0].name for i in range(101)]
    assert list(dict.fromkeys(names)) == ["alignment", "pre-training", "multi-task", "fine-tuning"]
    assert sum(stage.share for stage in schedule.STAGES) == pytest.approx(1)
    for before, after in zip(schedule.STAGES, schedule.STAGES[1:]):
        assert before.end.keys() <= after.start.keys() | after.end.keys()


def test_the_share_of_what_is_hard_grows():
    stage = schedule.STAGES[2]

    def hard(progress: float) -> float:
        mixture = schedule.mixture(stage, progress)
        return sum(mixture[task] for task in schedule.HARD) / sum(mixture.values())

    assert hard(0) < hard(0.5) < hard(1)


def test_an_adapted_mixture_follows_what_is_wrong():
    mixture = {"counting": 2.0, "letters": 1.0, "rewrite": 1.0}
    adapted = schedule.adapted(mixture, {"counting": 1.0, "letters": 0.0})
    assert adapted == {"counting": 0.5, "letters": 1.75, "rewrite": 1.0}


@pytest.fixture(scope="module")
def pools() -> data.Pools:
    """Of a few examples of every task."""
    examples = data.make_examples(random.Random(0), 8)
    trained = packing.read_autoencoder(packed.PACKED)
    return data.make_pools(examples, trained, LanceTokenizer(), torch.device("cpu"), lambda text: None)


def test_every_task_of_every_stage_has_examples(pools):
    wanted = {task for stage in schedule.STAGES for task in (*stage.start, *stage.end)}
    assert wanted == pools.buckets.keys() == pools.curated().buckets.keys()
    rng = random.Random(1)
    for task in wanted:
        (name,) = {sample.task for sample in data.draw_batch(rng, pools, task)}
        assert name == task


def test_what_cannot_be_read_back_is_not_clear(pools):
    """Nearly all of the old world can, with the shipped autoencoder."""
    targets = [sample.target for sample in pools.samples() if sample.task in ("t2i", "edit")]
    assert pools.clear[targets].float().mean() > 0.9
    blurred = torch.nn.functional.avg_pool2d(autoencoder.pixels([world.render(SCENE)]), 33, 1, 16)
    assert not world.hard.shows(SCENE, (blurred[0].movedim(0, -1) * 255).numpy())


def test_the_curated_set_leaves_out_what_is_not_clear(pools):
    left_out = next(sample for sample in pools.samples() if sample.task == "edit")
    for picture in (*left_out.sources, left_out.target):
        clear = torch.ones_like(pools.clear)
        clear[picture] = False
        rest = replace(pools, clear=clear).curated().samples()
        assert left_out not in rest and 0 < len(pools.samples()) - len(rest) < 10


def test_a_task_of_which_nothing_is_clear_keeps_all(pools):
    curated = replace(pools, clear=torch.zeros_like(pools.clear)).curated()
    assert curated.buckets["letters"] == pools.buckets["letters"]


@pytest.mark.parametrize("category", ["four objects", "letters"])
def test_a_picture_shows_its_scene_and_no_other(category):
    rng = random.Random(2)
    scenes = [world.hard.PICTURES[category](rng).scene for _ in range(20)]
    pictures = [world.render(scene) for scene in scenes]
    assert sum(map(world.hard.shows, scenes, pictures)) >= 19
    assert sum(map(world.hard.shows, scenes[1:], pictures)) <= 1


def test_a_training_that_is_stopped_comes_to_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(Saved, "EVERY", 2)

    def trained(file: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = autoencoder.NarrowTAEHV()
        return autoencoder.train(tmp_path / file, 0, 4, Report(), model).state_dict()

    whole, save = trained("whole.pt"), Saved.save

    def stop(self) -> None:
        save(self)
        raise Stopped

    with monkeypatch.context() as stopping, pytest.raises(Stopped):
        stopping.setattr(Saved, "save", stop)
        trained("stopped.pt")
    for name, weight in trained("stopped.pt").items():
        assert torch.equal(weight, whole[name]), name


def test_a_given_autoencoder_stays_where_no_steps_are_asked_for(tmp_path):
    given = packing.read_autoencoder(packed.PACKED)
    before = {name: weight.clone() for name, weight in given.state_dict().items()}
    kept = autoencoder.trained(tmp_path / "autoencoder.pt", 0, 0, Report(), given).state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in before.items())


def test_no_autoencoder_at_all_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training", "--autoencoder-steps", "0"])
    with pytest.raises(SystemExit):
        train.Settings.from_command_line()
    assert "keeps the autoencoder of --start, which is not given" in capsys.readouterr().err


def test_the_figures_of_a_training_are_drawn(tmp_path):
    report, losses = Report(tmp_path), Losses(0, 200)
    for step, loss in ((100, 2.0), (200, 1.5), (200, 1.0)):
        losses.add("counting", loss)
        report.losses(losses, step, "multi-task")
    report.shares({"counting": 0.3, "letters": 0.1}, 200)
    curves = chart.read(tmp_path / "progress.csv")
    assert curves["counting"] == {"loss": [(100, 2.0), (200, 1.0)], "right": [(200, 0.3)]}
    drawn = ElementTree.fromstring(chart.draw(curves))
    assert [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")] == ["counting: 30%", "letters: 10%"]
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 4


def test_trainings_that_go_on_from_each_other_are_drawn_as_one():
    first = {"counting": {"loss": [(100, 2.0), (200, 1.5)]}}
    second = {"letters": {"right": [(50, 0.1)]}, "counting": {"loss": [(100, 1.0)]}}
    assert chart.joined([first, second]) == {
        "counting": {"loss": [(100, 2.0), (200, 1.5), (300, 1.0)]},
        "letters": {"right": [(250, 0.1)]},
    }


@pytest.fixture(scope="module")
def shares() -> dict[str, float]:
    return evaluation.evaluate(packed.PACKED, 1)


@pytest.mark.slow
def test_what_was_judged_is_kept(shares, tmp_path):
    state = Saved(tmp_path / "state.pt", seed=0)
    state.right = shares
    state.save()
    assert Saved(tmp_path / "state.pt", seed=0).right == shares


@pytest.mark.slow
def test_the_results_compare_models_task_by_task(shares, monkeypatch):
    none = dict.fromkeys(evaluation.MEASURES, 0.0)
    monkeypatch.setattr(evaluation, "evaluate", lambda model, *_, **__: {"before": none, "after": shares}[model.name])
    table = evaluation.results({"supervised": Path("before"), "reinforced": Path("after")}, 1, steps=(6, 12))
    title, _, *rows = [line.strip("|\n ").split(" | ") for line in table.splitlines()]
    assert title == ["task", *(f"{model}, {n} steps" for n in (6, 12) for model in ("supervised", "reinforced"))]
    assert rows == [[task, *["0%", f"{share:.0%}"] * 2] for task, share in shares.items()]
