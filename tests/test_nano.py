"""The demonstration model: how it is packed, and whether what it makes is what was asked for."""

import random
import resource
import shutil
import sys

import comfy.model_management
import comfy.utils
import numpy as np
import pytest
import torch
from comfyui_lance.lance_model import language
from comfyui_lance.lance_model import nano as packed
from comfyui_lance.lance_model.checkpoint import CheckpointError
from comfyui_lance.nodes.loader import NANO, LoadLance
from comfyui_lance.training import autoencoder, evaluation, judge, model, train, world
from comfyui_lance.training import packed as packing
from safetensors import safe_open

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_memory")]

PROMPTS, STEPS = 10, 8


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)


def test_the_world_reads_itself():
    rng = random.Random(1)
    scenes = [world.a_scene(rng) for _ in range(100)]
    seen = [world.detect(world.render(scene)) for scene in scenes]
    assert all(background == scene.background for (background, _), scene in zip(seen, scenes))
    assert sum(world.same_things(things, scene) for (_, things), scene in zip(seen, scenes)) >= 98
    clips = [world.a_clip(rng) for _ in range(60)]
    assert sum(world.detect_motion([world.render(f) for f in clip.frames]) == clip.motion for clip in clips) >= 59


def test_the_judge_finds_faults():
    rng = random.Random(2)
    scenes = [world.single(rng) for _ in range(50)]
    seen = [world.detect(world.render(scene))[1] for scene in scenes]
    others = scenes[1:] + scenes[:1]
    wrong = [world.same_things(things, other) for things, other in zip(seen, others)]
    assert sum(wrong) <= 2  # two neighbours may be alike


def test_wide_channels_change_nothing():
    model = autoencoder.NarrowTAEHV().eval()
    with safe_open(packed.PACKED, "pt") as file:
        weights = {
            name.removeprefix(packed.VAE): file.get_tensor(name).float()
            for name in file.keys()
            if name.startswith(packed.VAE)
        }
    model.load_state_dict(weights, strict=False)
    wide = autoencoder.TAEHV(48, parallel=True)
    wide.load_state_dict(packed.widen(weights))
    clip = torch.rand(1, 3, 5, 32, 32)
    with torch.no_grad():
        latent = wide.encode(clip)
        torch.testing.assert_close(latent, model.encode(clip), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(wide.decode(latent), model.decode(latent), atol=1e-4, rtol=1e-4)


def test_what_is_sampled_is_what_was_trained_on(nano):
    model, _, vae = nano
    scene = world.single(random.Random(4))
    trained = packing.read_autoencoder(packed.PACKED).latents(autoencoder.pixels([world.render(scene)])[:, :, None])
    sampled = model.model.process_latent_in(vae.encode(judge.image(scene)))
    torch.testing.assert_close(sampled, trained.detach(), atol=1e-3, rtol=1e-3)


def test_what_is_packed_can_be_trained_on(tmp_path):
    with safe_open(packed.PACKED, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}
    rows = stored[packed.ROWS].tolist()
    trainee = model.Trainee(rows, language.LanceTokenizer())
    packing.read_trainee(packed.PACKED, trainee, rows)
    vae = packing.read_autoencoder(packed.PACKED).fold()
    packing.pack(tmp_path / "again.safetensors", dict(trainee.named_parameters()), vae, rows)
    with safe_open(tmp_path / "again.safetensors", "pt") as file:
        assert set(file.keys()) == stored.keys()
        for name, weight in stored.items():
            torch.testing.assert_close(file.get_tensor(name), weight, rtol=1e-3, atol=1e-4)


def test_it_can_be_trained_from_nothing_and_goes_on_in_two_processes(tmp_path, monkeypatch):
    settings = ["--autoencoder-steps", "4", "--vision-steps", "2", "--edits", "16", "--out", str(tmp_path)]
    settings += ["--evaluate-every", "0", "--reinforcement-rounds", "0", "--result-prompts", "0"]
    monkeypatch.setattr(comfy.model_management, "in_training", False)  # and again after the test
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for count in ("1", "2"):
        monkeypatch.setattr(sys, "argv", ["training", *settings, "--processes", count, "--steps", count])
        train.main()
        assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == int(count)
    with safe_open(tmp_path / "nano.safetensors", "pt") as made, safe_open(packed.PACKED, "pt") as shipped:
        assert set(made.keys()) == set(shipped.keys())


def test_the_checkpoint_is_made_once_and_whole(tmp_path):
    path = packed.checkpoint(tmp_path)
    made = path.stat().st_mtime_ns
    assert packed.checkpoint(tmp_path) == path and path.stat().st_mtime_ns == made
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with safe_open(path, "pt") as file:
        head = file.get_tensor(packed.VOCABULARY_KEYS[1])
    assert head.shape[0] == packed.VOCABULARY and 100 < head.any(dim=1).sum() < 1000


@pytest.fixture()
def little_room():
    """No file of this process grows beyond a megabyte, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_and_left_clean(little_room, tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be written to .* \(File too large.*Free about 130 MB"):
        packed.checkpoint(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["file", "file/folder", "/proc/lance"])
def test_a_folder_that_cannot_be_made_is_said(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written to .* \(.+\).*make the folder writable"):
        packed.checkpoint(tmp_path / folder)


def test_it_loads_beside_other_weights(tiny, monkeypatch, tmp_path):
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    shutil.copytree(tiny / "Qwen2.5-VL-ViT", tmp_path / "lance" / "Qwen2.5-VL-ViT")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "lance", ([str(tmp_path / "lance")], set()))
    model, clip, vae = LoadLance.execute(NANO, "default", "auto", "auto").result
    assert model.model.diffusion_model.hidden == clip.cond_stage_model.visual.merger.mlp[2].bias.shape[0]


@pytest.mark.parametrize("task", judge.TASKS)
def test_what_was_asked_for_is_made(nano, task):
    one_less = judge.TASKS[task][1] - 1 / PROMPTS  # another processor may turn a close one
    assert judge.right(judge.Judge(*nano, steps=STEPS), task, PROMPTS) >= one_less


def test_an_evaluation_leaves_training_as_it_was(monkeypatch):
    monkeypatch.setattr(comfy.model_management, "in_training", True)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    tasks = ["t2i", "letters"]
    assert list(evaluation.evaluate(packed.PACKED, 1, 2, tasks=tasks)) == tasks
    assert torch.equal(torch.get_rng_state(), before) and comfy.model_management.in_training


def test_the_same_seed_is_the_same_picture(nano):
    one, two, other = (judge.Judge(*nano).made("a red circle in the middle on a gray background", s) for s in (1, 1, 2))
    assert np.abs(one.astype(int) - two).max() <= 2 < np.abs(one.astype(int) - other).max()
