"""Lance without the page: the example client, a client that others wrote, and Ray over two servers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import endurance
import numpy as np
import pytest
from endurance import picture, question
from PIL import Image

CLIENTS = Path(__file__).resolve().parent.parent / "clients"
NOWHERE = "http://127.0.0.1:9"


def example(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(CLIENTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def write(path: Path, prompt: dict) -> Path:
    path.write_text(json.dumps(prompt))
    return path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Sums in another order can move a pixel by a level."""
    return a.shape == b.shape and np.abs(a - b).max() <= 2


@pytest.fixture()
def workflow(tmp_path) -> Path:
    return write(tmp_path / "picture.json", picture())


def draw(server, workflow: Path, out: Path, **settings) -> np.ndarray:
    """What the example client downloads."""
    changes = [f"--set={name}={value}" for name, value in settings.items()]
    done = example("client.py", workflow, *changes, "--server", server.url, "--out", out)
    assert done.returncode == 0, done.stderr
    (path,) = map(Path, done.stdout.splitlines())
    assert path.parent == out
    return pixels(path)


# ---- The example client ----------------------------------------------------------------------------------------------


def test_client_changes_prompt_and_seed(server, workflow, tmp_path):
    ball = draw(server, workflow, tmp_path / "ball", prompt="a red ball", seed=3)
    assert ball.shape == (64, 64, 3)
    assert same(ball, draw(server, workflow, tmp_path / "again", prompt="a red ball", seed=3))
    assert not same(ball, draw(server, workflow, tmp_path / "seed", prompt="a red ball", seed=4))
    assert not same(ball, draw(server, workflow, tmp_path / "prompt", prompt="a = b", seed=3))


def test_client_prints_texts(server, tmp_path):
    endurance.prepare(server)
    done = example("client.py", write(tmp_path / "question.json", question()), "--server", server.url)
    assert done.returncode == 0 and done.stdout.strip()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"server": NOWHERE}, "does not answer"),
        ({"set": "model=../../x.safetensors"}, "LanceLoader"),
        ({"set": "steps=-1"}, "KSampler"),
        ({"set": "prompts=a"}, "no input prompts among"),
        ({"set": "99.seed=1"}, "no input 99.seed among"),
        ({"upload": "image=nowhere.png"}, "nowhere.png cannot be read"),
        ({"set": "prompt"}, "NAME=VALUE"),
    ],
)
def test_client_says_what_is_wrong(server, workflow, tmp_path, settings, words):
    arguments = {"server": server.url, "out": tmp_path} | settings
    done = example("client.py", workflow, *(f"--{name}={value}" for name, value in arguments.items()))
    assert done.returncode > 0 and words in done.stderr and "Traceback" not in done.stderr


def test_client_says_that_a_file_is_the_pages(server):
    workflow = CLIENTS.parent / "workflows" / "text_to_image.json"
    done = example("client.py", workflow, "--server", server.url)
    assert done.returncode == 2 and "not in API format" in done.stderr


def test_client_sets_one_node_and_brings_a_file(server, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(CLIENTS)
    import client

    prompt = {"1": {"inputs": {"image": "a", "mask": ["2", 0]}}, "2": {"inputs": {"image": "b", "task.style": "c"}}}
    client.change(prompt, "2.image", "d")
    client.change(prompt, "task.style", "e")
    assert prompt["1"]["inputs"]["image"] == "a" and prompt["2"]["inputs"] == {"image": "d", "task.style": "e"}
    client.change(prompt, "image", "f")
    assert prompt["1"]["inputs"]["image"] == prompt["2"]["inputs"]["image"] == "f"
    with pytest.raises(KeyError, match="no input mask among 1.image, 2.image, 2.task.style"):
        client.change(prompt, "mask", "g")
    assert client.address("here:8188/") == client.address("http://here:8188") == "http://here:8188"

    Image.new("RGB", (64, 64), (200, 0, 0)).save(tmp_path / "grün (1).png")
    workflow = write(tmp_path / "question.json", question())
    arguments = ("--upload", f"image={tmp_path / 'grün (1).png'}", "--server", server.url.removeprefix("http://"))
    done = example("client.py", workflow, *arguments)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_client_tells_the_words_of_a_node_that_fails(server, tmp_path):
    prompt = picture()
    prompt["100"] = endurance.node("ConditioningZeroOut", conditioning=[endurance.ENCODER, 1])
    prompt[endurance.SAMPLER]["inputs"]["negative"] = ["100", 0]
    done = example("client.py", write(tmp_path / "zero.json", prompt), "--server", server.url)
    assert done.returncode == 1 and done.stderr.startswith("KSampler: ") and done.stderr.count("\n") == 1


def test_client_tells_a_failed_job_from_a_lost_server(server, monkeypatch):
    monkeypatch.syspath_prepend(CLIENTS)
    import client

    with pytest.raises(client.ServerLost, match="does not know job"):
        client.wait(server.url, "job-from-before-its-restart")
    with pytest.raises(client.ServerLost, match="does not answer"):
        client.queue(NOWHERE, picture())
    with pytest.raises(client.JobError, match="no outputs"):
        client.queue(server.url, {})


# ---- Clients that others wrote ---------------------------------------------------------------------------------------


def test_comfy_api_simplified(server, workflow, tmp_path):
    simplified = pytest.importorskip("comfy_api_simplified", reason="needs `pip install comfy-api-simplified`")
    prompt = {i: spec | {"_meta": {"title": spec["class_type"]}} for i, spec in picture().items()}
    titled = simplified.ComfyWorkflowWrapper(str(write(tmp_path / "titled.json", prompt)))
    titled.set_node_param("KSampler", "seed", 3)
    api = simplified.ComfyApiWrapper(server.url)
    job, _ = asyncio.run(api.queue_prompt_and_wait(titled))
    (saved,) = api.get_history(job)[job]["outputs"]["6"]["images"]
    (tmp_path / "theirs.png").write_bytes(api.get_image(saved["filename"], saved["subfolder"], saved["type"]))
    assert same(pixels(tmp_path / "theirs.png"), draw(server, workflow, tmp_path / "ours", seed=3))


@pytest.mark.skipif(shutil.which("comfy") is None, reason="needs `pip install comfy-cli`")
def test_comfy_cli(server, workflow, tmp_path):
    address = ("--host", "127.0.0.1", "--port", str(server.port))
    command = [
        "comfy",
        "--skip-prompt",
        "--no-enable-telemetry",
        "run",
        "--workflow",
        str(workflow),
        *address,
        "--wait",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"HOME": str(tmp_path)}
    )
    assert done.returncode == 0 and "type=output" in done.stdout, done.stdout + done.stderr


# ---- Ray over two servers --------------------------------------------------------------------------------------------

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs `pip install ray`")


@pytest.fixture(scope="module")
def two_servers() -> Iterator[list]:
    with ExitStack() as stack:
        yield [stack.enter_context(endurance.server()) for _ in range(2)]


def ray_jobs(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-u", str(CLIENTS / "ray_jobs.py"), *map(str, arguments)]
    quiet = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet)


@needs_ray
def test_ray_captions_a_folder(two_servers, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 0, 0)).save(folder / f"{i}.png")
    workflow = write(tmp_path / "question.json", question())
    urls = [server.url for server in two_servers]
    job = ray_jobs("caption", folder, "--servers", *urls, "--workflow", workflow, "--out", tmp_path / "texts")
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    assert "4 of 4 jobs done" in out
    assert all((tmp_path / "texts" / f"{i}.txt").read_text().strip() for i in range(4))


@needs_ray
def test_ray_keeps_pictures_apart_that_differ_in_their_ending(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(CLIENTS)
    import ray_jobs as jobs

    with pytest.raises(ValueError, match="has no pictures"):
        jobs.captions(tmp_path, {})
    for name in ("a.png", "a.jpg", "b.webp", "c.txt"):
        (tmp_path / name).touch()
    assert [job.name for job in jobs.captions(tmp_path, {})] == ["a.jpg", "a.png", "b"]


@needs_ray
def test_ray_goes_on_when_a_server_dies(two_servers, tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("\n".join(f"a ball, number {i}" for i in range(1, 9)))
    workflow = write(tmp_path / "picture.json", picture(steps=40))
    urls = [server.url for server in two_servers]
    out = tmp_path / "out"
    job = ray_jobs("render", lines, "--servers", NOWHERE, *urls, "--workflow", workflow, "--out", out)
    printed = job.stdout.readline()  # the first result comes while the others are made
    assert printed and len(list(out.iterdir())) < 8
    two_servers[0].process.kill()
    rest, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    assert "8 of 8 jobs done" in rest
    assert f"{NOWHERE} is lost" in err and f"{urls[0]} is lost" in err
    assert sorted(path.name for path in out.iterdir()) == [f"{i:04}.png" for i in range(1, 9)]
    assert len({path.read_bytes() for path in out.iterdir()}) == 8


@needs_ray
def test_ray_names_the_job_that_failed(server, tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("a ball\na cube\n")
    workflow = write(tmp_path / "p.json", picture(steps=-1))
    job = ray_jobs("render", lines, "--servers", server.url, "--workflow", workflow, "--out", tmp_path)
    out, err = job.communicate(timeout=300)
    assert job.returncode == 1 and "0 of 2 jobs done" in out and "Traceback" not in err
    assert "0001 FAILED: KSampler" in err and "0002 FAILED: KSampler" in err


@needs_ray
def test_ray_says_when_no_server_is_left(tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("a ball\n\na cube\n")
    job = ray_jobs("render", lines, "--servers", NOWHERE, "--workflow", write(tmp_path / "p.json", picture()))
    out, err = job.communicate(timeout=300)
    assert job.returncode == 1 and "0 of 2 jobs done" in out and "Traceback" not in err
    assert f"0001 FAILED: no server is left of {NOWHERE}" in err and "0002 FAILED: no server" in err
