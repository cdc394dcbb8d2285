"""Training in the graph: the shipped workflows train, on examples and by rules that show what is learnt."""

from __future__ import annotations

import logging
import random
from unittest import mock

import folder_paths
import numpy
import pytest
import torch
from comfyui_lance.dev.host import workflows
from comfyui_lance.nodes.lora import LoadLanceLora
from comfyui_lance.training import lessons, world
from PIL import Image
from safetensors.torch import load_file
from support.training import in_two_steps

LORAS = {"train_look": "lance_look", "train_edit": "lance_edit"}
LESSONS = [name for name in workflows.names() if name.startswith("train_")]  # test_server.py runs the others


def examples(lesson: str) -> list[list[tuple[Image.Image, str]]]:
    """Pictures and words of each folder that a workflow loads."""
    if lesson == "train_look":
        return [lessons.look_examples()]
    pairs = [(lessons.side_by_side(edit), edit.instruction) for edit in lessons.edit_examples()]
    return [pairs, [(world.render(edit.source), edit.instruction) for edit in lessons.known_edits()]]


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS)
def test_the_workflow_trains_a_lora_that_loads(lesson, server, nano, tmp_path, caplog):
    prompt = workflows.load(lesson)
    in_two_steps(prompt)
    pictures = server.outputs(server.wait(server.queue(prompt)))
    assert [path.suffix for path in pictures] == [".png"]
    files = (server.base / "output" / "loras").glob(f"{LORAS[lesson]}_2_steps_*.safetensors")
    file = max(files, key=lambda path: path.stat().st_mtime).rename(tmp_path / "trained.safetensors")

    moved = {name for name, weight in load_file(file).items() if "lora_up" in name and weight.abs().max() > 0}
    assert any("moe_gen" in name for name in moved) and any("moe_gen" not in name for name in moved)
    with mock.patch.dict(folder_paths.folder_names_and_paths, {"loras": ([str(tmp_path)], {".safetensors"})}):
        folder_paths.filename_list_cache.pop("loras", None)
        with caplog.at_level(logging.WARNING):
            model, _ = LoadLanceLora.execute(nano[0], file.name, 1.0, 1.0, nano[1]).args
    assert "not loaded" not in caplog.text.lower()
    assert {name.removesuffix(".lora_up.weight") + ".weight" for name in moved} <= model.patches.keys()


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_examples_are_shipped(lesson):
    """In the folders that the workflow names, as the lesson draws them; few and small."""
    loaders = workflows.of_type(workflows.load(lesson), "LoadImageTextDataSetFromFolder")
    for loader, drawn in zip(loaders, examples(lesson), strict=True):
        folder = workflows.INPUTS / loader["folder"]
        assert {path.stem for path in folder.iterdir()} == {f"{i:02}" for i in range(len(drawn))}
        assert len(drawn) <= 40 and sum(path.stat().st_size for path in folder.iterdir()) < 50_000
        for i, (picture, words) in enumerate(drawn):
            assert numpy.array_equal(
                numpy.asarray(Image.open(folder / f"{i:02}.png").convert("RGB")), numpy.asarray(picture)
            )
            assert (folder / f"{i:02}.txt").read_text().strip() == words


@torch.inference_mode()
def test_the_autoencoder_gives_back_the_look(nano):
    """Else no training makes it."""
    rng, vae = random.Random(3), nano[2]
    scenes = [lessons.with_visible_bars(rng) for _ in range(20)]
    pictures = [numpy.asarray(lessons.cinematic(world.render(scene))) for scene in scenes]
    back = [vae.decode(vae.encode(torch.tensor(picture)[None] / 255)).reshape(picture.shape) for picture in pictures]
    back = [(picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy() for picture in back]
    assert sum(map(lessons.is_cinematic, back, scenes)) >= 19


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_examples_train_the_model_that_they_are_for(lesson):
    """Also where there is Lance itself, which an automatic choice would take."""
    (loader,) = workflows.of_type(workflows.load(lesson), "LanceLoader")
    assert loader["model"] == "demonstration (nano)"


def test_the_workflow_halves_the_pairs():
    regions = [inputs["crop_region"] for inputs in workflows.of_type(workflows.load("train_edit"), "ImageCropV2")]
    edit = lessons.edit_examples()[0]
    halves = [
        lessons.side_by_side(edit).crop((r["x"], r["y"], r["x"] + r["width"], r["y"] + r["height"])) for r in regions
    ]
    for half, scene in zip(halves, (edit.source, edit.target), strict=True):
        assert numpy.array_equal(numpy.asarray(half), numpy.asarray(world.render(scene)))


def test_the_rule_knows_a_cinematic_picture():
    rng = random.Random(3)
    scenes = [lessons.with_visible_bars(rng) for _ in range(60)]
    plain = [world.render(scene) for scene in scenes]
    drawn = [numpy.asarray(lessons.cinematic(picture)) for picture in plain]
    assert sum(map(lessons.is_cinematic, drawn, scenes)) >= 59
    assert not any(lessons.is_cinematic(numpy.asarray(picture), scene) for picture, scene in zip(plain, scenes))
    assert sum(map(lessons.is_cinematic, drawn, scenes[1:])) <= 2  # two neighbours may be alike
    half = [numpy.vstack([picture[:32], numpy.asarray(whole)[32:]]) for picture, whole in zip(drawn, plain)]
    assert not any(map(lessons.is_cinematic, half, scenes))


def test_what_is_taught_is_new():
    """No picture of the world is cinematic, none of its edits reshapes."""
    rng = random.Random(4)
    captions = [world.describe(world.a_scene(rng)) for _ in range(200)]
    assert not any("cinematic" in caption for caption in captions)
    assert "reshape" not in {world.an_edit(rng).kind for _ in range(200)}
