"""Lance without the page: the example client, clients that others wrote, and Ray over two servers."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from comfyui_lance.dev.endurance import jobs as endurance
from comfyui_lance.dev.endurance.jobs import picture, question
from PIL import Image
from support.clients import CLIENTS, LOGIN, NAME, NOWHERE, SECRET, example, pixels, same, write
from support.proxy import Proxy

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(lance_server):
    return lance_server


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
    workflow = CLIENTS.parent / "workflows" / "Lance - text to image.json"
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


def test_client_knows_inputs_by_their_node_and_by_their_last_name(monkeypatch):
    monkeypatch.syspath_prepend(CLIENTS)
    import client

    prompt = client.read(CLIENTS.parent / "api" / "image_question.json")
    client.change(prompt, "question", "What?")
    client.change(prompt, "Load Lance.model", "a")
    client.change(prompt, "LanceLoader.vae", "b")
    client.change(prompt, "sampling.seed", 3)
    answer, loader = prompt["4"]["inputs"], prompt["2"]["inputs"]
    assert (answer["task.question"], answer["sampling.seed"]) == ("What?", 3)
    assert (loader["model"], loader["vae"]) == ("a", "b")
    assert client.numbers("1-3,7") == [1, 2, 3, 7]


def test_client_lists_what_can_be_set(workflow):
    done = example("client.py", workflow, "--list", "--set", "seed=12", "--server", NOWHERE)
    assert done.returncode == 0 and f"{endurance.SAMPLER}.seed=12  (KSampler)" in done.stdout


def test_client_draws_an_answer_and_one_picture_for_each_seed(server, workflow, tmp_path):
    endurance.prepare(server)
    words = write(tmp_path / "question.json", question())
    done = example("client.py", words, "--set", "sampling=on", "--set", "sampling.seed=4", "--server", server.url)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    done = example("client.py", workflow, "--seeds", "3-4,9", "--out", tmp_path / "three", "--server", server.url)
    three = [pixels(Path(line)) for line in done.stdout.splitlines()]
    assert len(three) == 3 and not same(three[0], three[1]) and not done.stderr
    assert same(three[2], draw(server, workflow, tmp_path / "nine", seed=9))


def test_client_tells_the_words_of_a_node_that_fails(server, tmp_path):
    endurance.prepare(server)
    prompt = endurance.edit()
    prompt[endurance.ENCODER]["inputs"]["prompt"] = " "
    done = example("client.py", write(tmp_path / "blank.json", prompt), "--server", server.url)
    assert done.returncode == 1 and done.stderr.startswith("LanceEncodeEdit: ") and done.stderr.count("\n") == 1


def test_client_keeps_files_of_one_name_apart(server, tmp_path):
    """Two save nodes that differ in their folder, in a folder where an earlier file lies."""
    prompt = picture()
    for i, folder in enumerate(("left", "right")):
        prompt[f"{20 + i}"] = endurance.node("EmptyImage", width=8, height=8, batch_size=1, color=255 << 8 * i)
        prompt[f"{30 + i}"] = endurance.node("SaveImage", images=[f"{20 + i}", 0], filename_prefix=f"{folder}/two")
    workflow = write(tmp_path / "two.json", {i: prompt[i] for i in ("20", "21", "30", "31")})
    out = tmp_path / "out"
    older = out / "left" / "two_00001_.png"
    older.parent.mkdir(parents=True)
    older.write_bytes(b"mine")
    done = example("client.py", workflow, "--server", server.url, "--out", out)
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert sorted(paths) == [out / "left" / "two_00001__2.png", out / "right" / "two_00001_.png"]
    assert [pixels(path)[0, 0].tolist() for path in sorted(paths)] == [[0, 0, 255], [0, 255, 0]]
    assert older.read_bytes() == b"mine"


def test_client_writes_nowhere_but_into_its_folder(monkeypatch):
    monkeypatch.syspath_prepend(CLIENTS)
    import client

    monkeypatch.setattr(client, "call", lambda url: b"")
    paths = {"../../a.png": "", "/etc/b.png": "", "c.png": "..\\x", "d.png": "C:/y/."}
    items = [{"filename": name, "subfolder": folder, "type": "output"} for name, folder in paths.items()]
    names = [name for name, _ in client.files("http://here", {"1": {"images": items}})]
    assert names == ["a.png", "etc/b.png", "x/c.png", "C_/y/d.png"]


# ---- Servers behind a login ------------------------------------------------------------------------------------------

BASIC = "Basic " + base64.b64encode(f"{NAME}:{SECRET}".encode()).decode()
ENVIRONMENT = {"COMFYUI_USER": NAME, "COMFYUI_PASSWORD": SECRET}


@pytest.mark.parametrize(
    ("expected", "address", "arguments", "environment"),
    [
        (BASIC, f"http://{LOGIN}@HOST", (), {}),
        (BASIC, f"{LOGIN}@HOST", (), {"COMFYUI_TOKEN": "kestrel"}),
        (BASIC, "ws://HOST", (), ENVIRONMENT),
        ("Bearer kestrel.1-2_3", "HOST", ("--token", "kestrel.1-2_3"), ENVIRONMENT),
        ("Bearer kestrel.1-2_3", "HOST", (), {"COMFYUI_TOKEN": "kestrel.1-2_3\n"}),
    ],
)
def test_client_passes_a_login_and_a_prefix(server, expected, address, arguments, environment, workflow, tmp_path):
    with Proxy(server.port, prefix="/comfy", authorization=expected) as proxy:
        address = address.replace("HOST", f"{proxy.host}/comfy/")
        done = example("client.py", workflow, "--server", address, "--out", tmp_path, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert {authorization for _, authorization in proxy.asked} == {expected}
    assert pixels(Path(done.stdout.strip())).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("address", "arguments", "environment", "words"),
    [
        (f"http://{LOGIN}@HOST", (), {}, "401 Unauthorized: give a user and password, or a token"),
        ("HOST", (), ENVIRONMENT, "401 Unauthorized"),
        (f"http://{LOGIN}@127.0.0.1:9", (), {}, "http://127.0.0.1:9/object_info/LanceLoader does not answer"),
        ("http://magpie:kestrel/gull@HOST", (), {}, "with %2F"),
        ("http://magpie:12/gull@HOST", (), {}, "with %2F"),
        ("http://magpie:12?gull@HOST", (), {}, "with %2F"),
        ("http://magpie:12#gull@HOST", (), {}, "with %2F"),
        ("ftp://magpie:kestrel@HOST", (), {}, "address is"),
        ("magpie:gull@HOST", ("--token", "kestrel"), {}, "one of them is enough"),
        ("HOST", (), {"COMFYUI_TOKEN": "kestrel gull"}, "COMFYUI_TOKEN has a blank"),
    ],
)
def test_client_never_tells_a_secret(server, address, arguments, environment, words, workflow):
    with Proxy(server.port, authorization="another") as proxy:
        address = address.replace("HOST", proxy.host)
        done = example("client.py", workflow, "--server", address, *arguments, **environment)
    assert done.returncode > 0 and words in done.stderr and "Traceback" not in done.stderr
    assert not [secret for secret in (NAME, "kestrel", "heron", "gull") if secret in done.stdout + done.stderr]


def test_client_takes_no_login_to_another_address(server, monkeypatch):
    monkeypatch.syspath_prepend(CLIENTS)
    import client

    with Proxy(server.port) as there, Proxy(server.port, moved_to=there.url) as here:
        login = client.address(f"{LOGIN}@{here.host}")
        assert "queue_running" in client.ask(f"{login}/queue")
        with pytest.raises(client.ServerLost, match=f"leads to {there.url}/prompt: give that address"):
            client.queue(login, picture())
    assert {authorization for _, authorization in here.asked} == {BASIC}
    assert {authorization for _, authorization in there.asked} == {None}
    assert client.shown(client.address(f"wss://{LOGIN}@here/a/")) == "https://here/a"


def test_client_tells_a_failed_job_from_a_lost_server(server, monkeypatch):
    monkeypatch.syspath_prepend(CLIENTS)
    import client

    with pytest.raises(client.ServerLost, match="has no job"):
        client.wait(server.url, "job-from-before-its-restart")
    with pytest.raises(client.ServerLost, match="does not answer"):
        client.queue(NOWHERE, picture())
    with pytest.raises(client.JobError, match="no outputs"):
        client.queue(server.url, {})
    with Proxy(port=9) as proxy, pytest.raises(client.ServerLost, match="502 Bad Gateway"):
        client.queue(proxy.url, picture())
    with Proxy(server.port, prefix="/comfy") as proxy, pytest.raises(client.ServerLost, match="404 Not Found"):
        client.queue(f"http://{proxy.host}/confy", picture())
    with pytest.raises(client.ServerLost, match="not as ComfyUI does"):
        client.ask(server.url)  # a page


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


@pytest.mark.skipif(find_spec("comfy_cli") is None, reason="needs `pip install comfy-cli`")
def test_comfy_cli(server, workflow, tmp_path):
    address = ("--host", "127.0.0.1", "--port", str(server.port))
    command = [
        sys.executable,
        "-m",
        "comfy_cli",
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
