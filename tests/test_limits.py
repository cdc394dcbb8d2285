"""Hostile values in the server's queue: names of files, and every number at its limits and beyond them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from comfyui_lance.dev.endurance import jobs as endurance
from comfyui_lance.dev.endurance.jobs import CLIP, MODEL, VAE, loader, node

NAMES = [
    "../../x.safetensors",
    "/etc/passwd",
    "..\\..\\x.safetensors",
    "Lance_3B/../../x.safetensors",
    "",
    "x\0.safetensors",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("widget", ["model", "vision", "vae"])
def test_a_file_outside_the_folders_is_refused(server, widget, name):
    (server.base / "x.safetensors").touch()
    prompt = endurance.picture()
    prompt[endurance.LOADER]["inputs"][widget] = name
    with pytest.raises(RuntimeError, match="LanceLoader"):
        server.queue(prompt)


DEMONSTRATION = "demonstration (nano)"
PICTURE, VIDEO = ["20", 0], ["22", 0]
SOURCES = {
    endurance.LOADER: loader(DEMONSTRATION),
    "20": node("LoadImage", image=endurance.INPUT),
    "21": node("RepeatImageBatch", image=PICTURE, amount=9),
    "22": node("CreateVideo", images=["21", 0], fps=12.0),
}
SAMPLING = {"sampling": "on", "sampling.temperature": 0.7, "sampling.top_k": 50, "sampling.top_p": 0.9}
SAMPLING |= {"sampling.repetition_penalty": 1.05, "sampling.seed": 0, "max_length": 4}
KEEP = "keep size"
NUMBERED = {
    "EmptyLanceLatent": {"size": "custom", "size.width": 64, "size.height": 64, "frames": 1, "batch_size": 1},
    "LanceAnswer": {
        "model": MODEL, "clip": CLIP, "task": "question", "task.question": "What?", "images.image0": PICTURE,
        "image_resolution": KEEP, **SAMPLING,
    },
    "LanceContextWindows": {"model": MODEL, "window": "custom", "window.frames": 1025, "window.overlap": 0},
    "LanceEncodeVideoEdit": {
        "clip": CLIP, "vae": VAE, "video": VIDEO, "prompt": "blue", "resolution": KEEP, "sample_fps": 12.0,
        "max_seconds": 6.0,
    },
    "LanceEnhancePrompt": {
        "model": MODEL, "clip": CLIP, "prompt": "a ball", "image": PICTURE, "image_resolution": KEEP, **SAMPLING,
    },
    "LanceGuidance": {
        "model": MODEL, "start": 0.4, "end": 1.0, "renormalisation": "global", "renormalisation_minimum": 0.0,
        "image_guidance": 1.0,
    },
    "LanceImageToVideo": {"vae": VAE, "start": PICTURE, "resolution": KEEP, "frames": 9, "batch_size": 1},
    "LanceRank": {
        "model": MODEL, "clip": CLIP, "images": ["21", 0], "task": "caption", "task.prompt": "a ball",
        "task.style": "accurate", "frames": 9, "image_resolution": KEEP, "video_resolution": KEEP,
    },
    "LanceScheduler": {"model": MODEL, "steps": 30, "denoise": 1.0},
}  # fmt: skip


def numbers(node: dict, prefix: str = "") -> Iterator[tuple[str, dict]]:
    """Name and options of each number that a node's schema has, those of its choices' own inputs too."""
    inputs = node.get("input", node)
    for name, (kind, options) in {**inputs.get("required", {}), **inputs.get("optional", {})}.items():
        if kind in ("INT", "FLOAT"):
            yield prefix + name, options
        for choice in options.get("options", []) if kind == "COMFY_DYNAMICCOMBO_V3" else []:
            yield from numbers(choice["inputs"], f"{prefix}{name}.")


@pytest.fixture(scope="module")
def schema(server) -> dict[str, dict]:
    endurance.prepare(server)
    info = server.object_info()
    found = {name: dict(numbers(node)) for name, node in info.items() if node["category"].split("/")[0] == "Lance"}
    for name in ("LanceLoraLoader", "LancePasteEdit"):  # their numbers need a LoRA, or an edit: see their own tests
        found.pop(name, None)
    return {name: widgets for name, widgets in found.items() if widgets}


def promises_memory() -> bool:
    """Whether this system may give out 207 GB, had or not."""
    overcommit = Path("/proc/sys/vm/overcommit_memory")
    return not overcommit.exists() or overcommit.read_text().strip() == "1" or psutil.virtual_memory().total > 150e9


def with_widgets(name: str, **widgets) -> dict:
    return SOURCES | {"1000": node(name, **NUMBERED[name] | widgets), "1001": node("PreviewAny", source=["1000", 0])}


def test_every_number_is_tried(schema):
    assert schema.keys() == NUMBERED.keys()
    assert all(widgets.keys() <= NUMBERED[name].keys() for name, widgets in schema.items())


@pytest.mark.parametrize("name", NUMBERED)
def test_numbers_at_their_limits(server, schema, name):
    """One at a time: each runs. 4,096 tokens are left to the endurance checks, where they are interrupted."""
    for widget, options in schema[name].items():
        for limit in ("min", "max"):
            if (widget, limit) != ("max_length", "max"):
                entry = server.wait(server.queue(with_widgets(name, **{widget: options[limit]})), timeout=60)
                assert endurance.texts(entry), (widget, limit)


@pytest.mark.parametrize("name", NUMBERED)
def test_numbers_beyond_their_limits(server, schema, name):
    for (widget, options), (limit, by) in itertools.product(schema[name].items(), (("min", -1), ("max", 1))):
        with pytest.raises(RuntimeError, match=f"{name}: Value .* than {limit}"):
            server.queue(with_widgets(name, **{widget: options[limit] + by}))


@pytest.mark.skipif(promises_memory(), reason="207 GB would be tried")
def test_more_memory_than_there_is(server, schema):
    """All at their limits make a latent of 207 GB: the job fails for memory, and the next one is right."""
    picture = endurance.picture() | {endurance.LOADER: loader(DEMONSTRATION)}
    before = endurance.run(server, picture)
    limits = {widget: options["max"] for widget, options in schema["EmptyLanceLatent"].items()}
    with pytest.raises(RuntimeError, match="There is no memory for .* Lower batch_size, frames or the size"):
        server.wait(server.queue(with_widgets("EmptyLanceLatent", **limits)), timeout=60)
    assert endurance.same(endurance.run(server, picture), before)
