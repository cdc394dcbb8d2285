"""The example client for several servers, with Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from comfyui_lance.dev.endurance import jobs as endurance
from comfyui_lance.dev.endurance.jobs import picture, question
from PIL import Image
from support.clients import CLIENTS, LOGIN, NOWHERE, write
from support.proxy import Proxy

pytestmark = [pytest.mark.server, pytest.mark.slow]


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs `pip install ray`")


@pytest.fixture(scope="module")
def server(lance_server):
    return lance_server


@pytest.fixture(scope="module")
def two_servers(server) -> Iterator[list]:
    """The first may be killed."""
    with endurance.server() as mortal:
        yield [mortal, server]


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
def test_ray_waits_for_a_server_that_starts_again(two_servers, tmp_path):
    """Behind a proxy, which goes on answering."""
    lines = tmp_path / "prompts.txt"
    lines.write_text("\n".join(f"a ball, number {i}" for i in range(1, 7)))
    workflow = write(tmp_path / "picture.json", picture(steps=40))
    with Proxy(two_servers[0].port) as proxy:
        job = ray_jobs("render", lines, "--servers", proxy.url, "--workflow", workflow, "--out", tmp_path / "out")
        job.stdout.readline()
        two_servers[0].process.kill()
        two_servers[0].process.wait()
        assert "is lost, waiting up to 300 s" in job.stderr.readline()
        two_servers[0].start()
        out, err = job.communicate(timeout=300)
    assert job.returncode == 0 and "6 of 6 jobs done" in out, err
    assert len({path.read_bytes() for path in (tmp_path / "out").iterdir()}) == 6


@needs_ray
def test_ray_goes_on_when_a_server_dies(two_servers, tmp_path):
    """The last that needs both."""
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
    workflow = write(tmp_path / "p.json", picture())
    with Proxy(port=9) as proxy:
        login = f"http://{LOGIN}@{proxy.host}"
        job = ray_jobs("render", lines, "--servers", NOWHERE, login, "--workflow", workflow, "--wait", 0)
        out, err = job.communicate(timeout=300)
    assert job.returncode == 1 and "0 of 2 jobs done" in out and "Traceback" not in err
    assert f"0001 FAILED: no server is left of {NOWHERE}, {proxy.url}" in err and "0002 FAILED: no server" in err
    assert f"{proxy.url} is given up" in err and "502 Bad Gateway" in err and "kestrel" not in out + err


@needs_ray
def test_ray_gives_up_a_job_that_loses_every_server(server, tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("a ball")
    workflow = write(tmp_path / "p.json", picture())
    with Proxy(server.port, dead="/prompt") as proxy:
        job = ray_jobs("render", lines, "--servers", proxy.url, "--workflow", workflow)
        out, err = job.communicate(timeout=300)
    assert job.returncode == 1 and "0 of 1 jobs done" in out and err.count("is lost") == 3
    assert "0001 FAILED: it has lost its server 3 times, at last: " in err and "502 Bad Gateway" in err
