"""A real ComfyUI server with the plugin: it has the nodes, runs the shipped workflows, and says what goes wrong."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request

import av
import numpy as np
import pytest
import torch
from comfyui_lance.dev.host import workflows
from comfyui_lance.dev.host.watching import Run, watch
from PIL import Image
from safetensors.torch import save_file
from support.interface import inputs

NODES = {
    "EmptyLanceLatent",
    "LanceAnswer",
    "LanceContextWindows",
    "LanceEncode",
    "LanceEncodeEdit",
    "LanceEncodeReferences",
    "LanceEncodeVideoEdit",
    "LanceEnhancePrompt",
    "LanceGuidance",
    "LanceImageToVideo",
    "LanceLoader",
    "LanceLoraLoader",
    "LancePasteEdit",
    "LanceRank",
    "LanceScheduler",
}


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as response:
        return response.read()


def saved_frames(server, run: Run) -> list[tuple[np.ndarray, float | None]]:
    """(frames [n, height, width, 3], frames per second or None for a picture) of all that a run saved."""
    media = []
    for item in run.saved():
        if item["filename"].endswith(".txt"):
            continue
        with av.open(io.BytesIO(get(f"{server.url}/view?{urllib.parse.urlencode(item)}"))) as file:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
            is_picture = file.format.name.endswith("_pipe")
            media.append((frames, None if is_picture else float(file.streams.video[0].average_rate)))
    return media


def text_to_image(**sampler) -> dict:
    """The shipped workflow in three steps, with other settings for its sampler."""
    prompt = workflows.load("text_to_image")
    workflows.of_type(prompt, "KSampler")[0].update({"steps": 3} | sampler)
    return prompt


def find(prompt: dict, class_type: str) -> str:
    return next(node for node, spec in prompt.items() if spec["class_type"] == class_type)


def rejection(server, prompt: dict) -> list[str]:
    """What the page shows next to the nodes when the server refuses a prompt."""
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{server.url}/prompt", json.dumps({"prompt": prompt}).encode())
    nodes = json.load(error.value)["node_errors"]
    return [problem["details"] for node in nodes.values() for problem in node["errors"]]


def check_sentence(text: str, *words: str) -> None:
    """What a user can act on: a sentence or two, with the words that name the problem and its cure."""
    assert "\n" not in text and "Traceback" not in text and len(text) < 400
    assert text.endswith(".")
    for word in words:
        assert word in text


@pytest.fixture(scope="module")
def lance_nodes(server) -> dict[str, dict]:
    return {name: node for name, node in server.object_info().items() if node["category"].split("/")[0] == "Lance"}


def test_nodes_are_listed(lance_nodes):
    assert set(lance_nodes) == NODES
    for node in lance_nodes.values():
        assert node["python_module"].startswith("custom_nodes.")
        assert node["description"] and node["search_aliases"]


@pytest.mark.parametrize("name", sorted(NODES))
def test_inputs_explain_themselves(lance_nodes, name):
    groups = lance_nodes[name]["input"]
    inputs = {**groups.get("required", {}), **groups.get("optional", {})}
    assert [key for key, (_, options) in inputs.items() if not options.get("tooltip")] == []


@pytest.mark.parametrize("name", workflows.names())
def test_a_shipped_prompt_has_no_input_that_its_node_lacks(server, name):
    """What the page adds to show something comes and goes."""
    nodes = server.object_info()
    for spec in workflows.load(name).values():
        known = set().union(*nodes[spec["class_type"]]["input"].values())
        assert {key.split(".")[0] for key in spec["inputs"]} <= known


@pytest.mark.parametrize("name", [name for name in workflows.names() if not name.startswith("train_")])
def test_workflow_runs(server, name):
    """Those that train: test_training.py."""
    prompt = workflows.load(name)
    run = watch(server.url, prompt)
    assert run.end == "execution_success"
    empty = workflows.of_type(prompt, "EmptyLanceLatent")
    sizes = [(9 if "clip" in i["size"] and i["frames"] == 1 else i["frames"], 64, 64, 3) for i in empty]
    media = saved_frames(server, run)
    assert media or workflows.texts({"outputs": run.outputs})
    assert [frames.shape for frames, _ in media] == sizes or not sizes
    for frames, fps in media:
        assert frames.std() > 1
        if fps is not None:
            rate = workflows.of_type(prompt, "CreateVideo")[0]["fps"]
            assert fps == rate or isinstance(rate, list)  # linked to the source's
            assert all(np.ptp(np.diff(frames.astype(int), axis=0), axis=(1, 2, 3)) > 0)  # it moves


@pytest.mark.parametrize("name", ["image_edit", "masked_edit"])
def test_an_edit_leaves_the_rest_of_a_large_picture(server, name):
    picture = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    mask = np.zeros((100, 150, 3), dtype=np.uint8)
    mask[20:80, 10:90] = 255
    for array, file in ((picture, "large.png"), (mask, "large_mask.png")):
        Image.fromarray(array).save(server.base / "input" / file)
    prompt = workflows.load(name)
    prompt[find(prompt, "LoadImage")]["inputs"]["image"] = "large.png"
    for loader in workflows.of_type(prompt, "LoadImageMask"):
        loader["image"] = "large_mask.png"
    ((result, _),) = saved_frames(server, watch(server.url, prompt))
    assert result.shape == (1, 100, 150, 3)
    inside = np.zeros((100, 150), dtype=bool)
    inside[:, 25:125] = True
    if name == "masked_edit":
        inside &= mask[..., 0] > 0
    changed = (result[0] != picture).any(axis=-1)
    assert not changed[~inside].any() and changed[inside].mean() > 0.9


@pytest.mark.parametrize("name", workflows.names())
def test_nothing_has_to_be_switched_for_lance(lance_nodes, name):
    """What depends on the model follows it, and every choice is one of the node's."""
    prompt = workflows.load(name)
    if not workflows.of_type(prompt, "TrainLoraNode"):  # whose examples are the demonstration model's
        assert all(loader["model"].startswith("automatic") for loader in workflows.of_type(prompt, "LanceLoader"))
    for spec in prompt.values():
        if spec["class_type"] not in lance_nodes:
            continue
        for key, value in spec["inputs"].items():
            if key in ("size", "window") or "resolution" in key:
                assert value.startswith("automatic"), key
        for key, settings in inputs(lance_nodes[spec["class_type"]]["input"]):
            if "options" in settings and key in spec["inputs"]:
                assert spec["inputs"][key] in settings["options"], key


def test_the_page_follows_the_sampling(server):
    prompt = text_to_image(seed=1)
    run = watch(server.url, prompt)
    sampler = find(prompt, "KSampler")
    steps = [(data["value"], data["max"]) for data in run.of_type("progress") if data["node"] == sampler]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert len(run.previews) == 3
    assert all(np.asarray(preview).std() > 1 for preview in run.previews)


@pytest.mark.parametrize("changed", [{"seed": 5}, {"steps": 4}])
def test_another_seed_or_number_of_steps_encodes_nothing_again(server, changed):
    prompt = workflows.load("image_edit")
    sampler = find(prompt, "KSampler")
    prompt[sampler]["inputs"].update({"seed": 4, "steps": 3})
    watch(server.url, prompt)
    prompt[sampler]["inputs"].update(changed)
    ran = {data["node"] for data in watch(server.url, prompt).of_type("executing")} - {None}
    done = {prompt[node]["class_type"] for node in ran}
    assert sampler in ran and done == {"KSampler", "VAEDecode", "LancePasteEdit", "SaveImage"}


def test_interrupt_leaves_nothing_behind(server):
    before = saved_frames(server, watch(server.url, text_to_image(seed=2)))[0][0]

    long = text_to_image(seed=2, steps=10_000)
    fifth_step = (find(long, "KSampler"), 5)
    start = time.monotonic()
    run = watch(server.url, long, lambda event, data: (data.get("node"), data.get("value")) == fifth_step)
    assert run.end == "execution_interrupted" and run.saved() == []
    assert len(run.of_type("progress")) < 100 and time.monotonic() - start < 30

    # A denoise that rounds to 1 keeps ComfyUI from answering out of its cache.
    run = watch(server.url, text_to_image(seed=2, denoise=0.99995))
    assert len(run.of_type("progress")) == 3
    assert np.abs(saved_frames(server, run)[0][0].astype(int) - before).max() <= 2


def test_the_workflows_pictures_are_in_comfyuis_input(server, tmp_path):
    """Those of a workflow that was opened are there without help, and a user's own picture of that name stays."""
    from comfyui_lance.nodes import samples

    given = [path.relative_to(samples.SAMPLES) for path in samples.SAMPLES.rglob("*.*")]
    assert len(given) >= 9
    assert all((server.base / "input" / path).is_file() for path in given)
    folder = shutil.copytree(server.base / "input", tmp_path / "input")
    (folder / given[0]).write_bytes(b"mine")
    (folder / given[1]).unlink()
    samples.provide(folder)
    assert (folder / given[0]).read_bytes() == b"mine"
    assert (folder / given[1]).is_file()


@pytest.mark.parametrize(
    ("workflow", "node", "wrong", "words"),
    [
        ("text_to_image", "EmptyLanceLatent", {"size": "image 768"}, "size is none of its options.*custom"),
        ("caption", "LanceAnswer", {"task": "ask"}, "task is none of its options.*question, caption"),
        ("caption", "LanceAnswer", {"sampling": "maybe"}, "sampling is none of its options.*off, on"),
        ("image_edit", "LanceEncodeEdit", {"prompt": "  "}, "no instruction.*make the circle blue"),
    ],
)
def test_a_wrong_value_from_a_script(server, workflow, node, wrong, words):
    prompt = workflows.load(workflow)
    workflows.of_type(prompt, node)[0].update(wrong)
    run = watch(server.url, prompt)
    assert run.end == "execution_error"
    assert re.search(words, run.error), run.error


def test_a_text_appears_on_the_page_that_asked_alone(server):
    prompt = workflows.load("caption")
    workflows.of_type(prompt, "LanceAnswer")[0]["max_length"] = 7  # a caption that is not in ComfyUI's cache
    run = watch(server.url, prompt)
    assert run.end == "execution_success" and run.words and not run.overheard


def test_a_model_that_is_not_there(server):
    prompt = text_to_image()
    workflows.of_type(prompt, "LanceLoader")[0]["model"] = "Lance_7B/model.safetensors"
    (error,) = rejection(server, prompt)
    check_sentence(error, "Lance_7B/model.safetensors", "models/lance")


def test_a_clip_of_another_model(server):
    folder = server.base / "models" / "text_encoders"
    folder.mkdir()
    save_file({"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(3072, 768)}, folder / "clip_l.safetensors")
    prompt = text_to_image()
    inputs = {"clip_name": "clip_l.safetensors", "type": "stable_diffusion"}
    prompt["100"] = {"class_type": "CLIPLoader", "inputs": inputs}
    workflows.of_type(prompt, "LanceEncode")[0]["clip"] = ["100", 0]
    run = watch(server.url, prompt)
    assert run.end == "execution_error"
    check_sentence(run.error, "Load Lance")
