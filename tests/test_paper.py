"""The paper's benchmarks: their prompt files become the folders that their scorers read, over servers, in pieces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from support.interface import inputs
from support.proxy import Proxy

pytestmark = pytest.mark.slow

CLIENTS = Path(__file__).resolve().parent.parent / "clients"
NOWHERE = "http://127.0.0.1:9"
SMALL = ("--set=size=demonstration 64x64", "--set=steps=2")
SCENES = ["a red ball", "two blue stars", "a green heart on a chair"]


@pytest.fixture(scope="module")
def server(lance_server):
    return lance_server


@pytest.fixture()
def paper(monkeypatch):
    monkeypatch.syspath_prepend(CLIENTS)
    import paper

    return paper


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(CLIENTS / "paper.py"), *map(str, arguments)]


def render(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)


def write_lines(path: Path, entries: list[dict]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.fixture()
def scenes(tmp_path) -> Path:
    """As GenEval's prompts are."""
    info = [{"tag": "counting", "include": [{"class": "ball", "count": 1}], "prompt": scene} for scene in SCENES]
    entries = [{"index": i, "data": scene, "additional_info": info[i]} for i, scene in enumerate(SCENES)]
    return write_lines(tmp_path / "GenEVAL.jsonl", entries)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Sums in another order can move a pixel by a level."""
    return a.shape == b.shape and np.abs(a - b).max() <= 2


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def geneval_names(prompts: range) -> set[str]:
    samples = {f"{i:05}/samples/{k:04}.png" for i in prompts for k in range(4)}
    return samples | {f"{i:05}/metadata.jsonl" for i in prompts}


# ---- The folders -----------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_shards_make_the_same(server, scenes, tmp_path):
    run, out = ("geneval", scenes, "--servers", server.url, *SMALL, "--out"), tmp_path / "whole"
    killed = subprocess.Popen(command(*run, out), stdout=subprocess.PIPE, text=True)
    first = [Path(killed.stdout.readline().strip()) for _ in range(2)]
    killed.kill()
    killed.communicate()
    times = {path: path.stat().st_mtime_ns for path in first}
    for path in out.rglob("*.png"):
        assert pixels(path).shape == (64, 64, 3)  # read to its end

    done = render(*run, out)
    assert done.returncode == 0, done.stderr
    there = int(done.stdout.splitlines()[-1].split(", ")[1].split()[0])
    assert there >= 2 and f"{12 - there} of 12 files made" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in first} == times
    assert names(out) == geneval_names(range(3))
    assert json.loads((out / "00001" / "metadata.jsonl").read_text())["prompt"] == SCENES[1]

    parts = tmp_path / "parts"
    for part in ("1/2", "2/2"):
        done = render(*run, parts, "--shard", part)
        assert done.returncode == 0, done.stderr
    assert names(parts) == names(out)
    pictures = sorted(out.rglob("*.png"))
    assert all(same(pixels(path), pixels(parts / path.relative_to(out))) for path in pictures)
    for path in pictures:
        used = json.loads(Image.open(path).text["prompt"]).values()
        (sampler,) = [node["inputs"] for node in used if node["class_type"] == "KSampler"]
        assert sampler["seed"] == 42 + 1000 * int(path.parts[-3]) + int(path.stem)


def test_dpg_has_its_four_pictures_in_one(server, scenes, tmp_path):
    prompts = write_lines(tmp_path / "DPG.jsonl", [{"index": "partiprompts7", "data": SCENES[0]}])
    for benchmark, file in (("geneval", scenes), ("dpg", prompts)):
        run = (benchmark, file, "--limit", 1, "--servers", server.url, *SMALL, "--out", tmp_path / benchmark)
        done = render(*run)
        assert done.returncode == 0, done.stderr
    assert names(tmp_path / "dpg") == {"partiprompts7.png"}
    grid = pixels(tmp_path / "dpg" / "partiprompts7.png")
    quarters = [grid[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    for i, quarter in enumerate(quarters):
        assert same(quarter, pixels(tmp_path / "geneval" / "00000" / "samples" / f"{i:04}.png"))


def test_gedit_shows_what_was_edited(server, tmp_path):
    images, edits = tmp_path / "images", {}
    images.mkdir()
    for i, (stored, key) in enumerate((("0040_input_image", "a1"), ("b2", "b2"))):
        Image.new("RGB", (90, 60), (200 * i, 90, 0)).save(images / f"{stored}.png")
        info = {"key": key, "task_type": "color_alter", "instruction_language": "en", "Intersection_exist": True}
        picture = f"./benchmarks/image_gen/GEdit/images/004{i}_input_image.png"
        edits[f"004{i}"] = {"interleave_array": ["make it blue", picture, picture], "additional_info": info}
    prompts = tmp_path / "GEdit_en.json"
    prompts.write_text(json.dumps(edits))
    small = ("--set=resolution=demonstration 64x64", "--set=steps=2")
    done = render("gedit", prompts, "--servers", server.url, *small, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "fullset" / "color_alter" / "en"
    assert names(folder) == {"a1.png", "a1_SRCIMG.png", "b2.png", "b2_SRCIMG.png"} == {p.name for p in folder.iterdir()}
    assert (folder / "a1_SRCIMG.png").read_bytes() == (images / "0040_input_image.png").read_bytes()
    assert not same(pixels(folder / "a1.png"), pixels(folder / "b2.png"))

    (images / "b2.png").unlink()
    done = render("gedit", prompts, "--servers", server.url, "--out", tmp_path / "new")
    assert done.returncode == 2 and "1 pictures to edit are not there" in done.stderr and "--images" in done.stderr


def test_vbench_names_clips_by_the_first_prompt(server, paper, tmp_path):
    long = [{"index": i, "data": f"{scene}, long", "original_prompt_en": scene} for i, scene in enumerate(SCENES)]
    prompts = write_lines(tmp_path / "Vbench_recaption.jsonl", [*long, {**long[0], "data": "other"}])
    (tmp_path / "temporal_flickering_prompts.json").write_text(json.dumps(SCENES[2:]))
    of_prompts = paper.paper_prompts.vbench(prompts, tmp_path)
    assert [len(jobs) for jobs in of_prompts] == [5, 5, 25]
    assert [jobs[0].prompt for jobs in of_prompts] == [entry["data"] for entry in long]

    out = tmp_path / "out"
    small = ("--set=size=demonstration 64x64", "--set=frames=5", "--set=steps=1")
    done = render("vbench", prompts, "--limit", 1, "--servers", server.url, *small, "--out", out)
    assert done.returncode == 0, done.stderr
    assert names(out) == {f"a red ball-{i}.mp4" for i in range(5)}
    with av.open(str(out / "a red ball-4.mp4")) as clip:
        assert clip.streams.video[0].average_rate == 12
        assert sum(1 for _ in clip.decode(video=0)) == 5


# ---- The settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", ["geneval", "dpg", "gedit", "vbench"])
def test_the_papers_settings_are_what_the_nodes_take(server, paper, benchmark):
    nodes = server.object_info()
    prompt = paper.build(paper.BENCHMARKS[benchmark], benchmark, paper.unconditional([server.url]), [])
    for spec in prompt.values():
        groups = nodes[spec["class_type"]]["input"]
        assert set(groups["required"]) <= set(spec["inputs"]) <= {*groups["required"], *groups.get("optional", {})}
        for key, settings in inputs(groups) if "Lance" in spec["class_type"] else ():
            if "options" in settings and key in spec["inputs"]:
                assert spec["inputs"][key] in settings["options"], key
    (shift,) = [inputs["shift"] for _, inputs in paper.of_type(prompt, "ModelSamplingSD3")]
    samplers = [(inputs["steps"], inputs["cfg"]) for _, inputs in paper.of_type(prompt, "KSampler")]
    assert shift == (3.0 if benchmark == "vbench" else 3.5)
    assert samplers == [(30 if benchmark == "vbench" else 50, 4.0)] * (4 if benchmark == "dpg" else 1)


def test_the_papers_unconditional_branch_is_taken_where_there_is_one(paper, monkeypatch, capsys):
    bare = {"LanceGuidance": {"input": {"required": {"start": []}}}}
    newer = {"LanceGuidance": {"input": {"required": {}, "optional": {"unconditional": []}}}}
    answers = {"a": bare, "b": newer, "c": {}}
    monkeypatch.setattr(paper.client, "shown", lambda url: url)
    monkeypatch.setattr(paper.client, "ask", lambda url: answers[url.split("/")[0]])
    assert paper.unconditional(["b"]) == {"unconditional": "published"} and not capsys.readouterr().err
    assert paper.unconditional(["a"]) == {} and "as trained alone" in capsys.readouterr().err
    with pytest.raises(ValueError, match="different versions"):
        paper.unconditional(["a", "b"])
    with pytest.raises(ValueError, match="c has no node Lance Guidance"):
        paper.unconditional(["b", "c"])


def test_a_folder_takes_no_files_of_other_settings(server, scenes, tmp_path):
    run = ("geneval", scenes, "--limit", 1, "--servers", server.url, *SMALL, "--out", tmp_path / "out")
    done = render(*run, "--set=model=nothing.safetensors")
    assert done.returncode == 1 and "refuses the workflow: LanceLoader" in done.stderr
    assert done.stderr.count("refuses") == 1
    assert render(*run).returncode == 0
    done = render(*run, "--set=cfg=5")
    assert done.returncode == 2 and "KSampler.cfg: 4.0, now 5" in done.stderr
    assert names(tmp_path / "out") == geneval_names(range(1))


# ---- What goes wrong -------------------------------------------------------------------------------------------------


def test_a_lost_servers_jobs_go_to_another(server, scenes, tmp_path):
    with Proxy(server.port, dead="/prompt") as dying:
        run = ("geneval", scenes, "--limit", 2, "--wait", 0, *SMALL, "--servers", dying.url)
        done = render(*run, server.url, "--out", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert "8 of 8 files made" in done.stdout and f"{dying.url} is lost" in done.stderr
        done = render(*run, "--out", tmp_path / "none")
    assert done.returncode == 1 and "0 of 8 files made, 0 were there, 8 failed" in done.stdout
    assert names(tmp_path / "out") == geneval_names(range(2)) and not names(tmp_path / "none")


def test_a_file_is_whole_or_not_there(paper, monkeypatch, tmp_path):
    job = paper.Job("a/b.png", "a ball", [1], beside={"a/metadata.jsonl": b"{}"})

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        paper.save(tmp_path, job, b"content")
    assert not (tmp_path / "a" / "b.png").exists() and not (tmp_path / "a" / "metadata.jsonl").exists()
    paper.save(tmp_path, job, b"content")
    assert names(tmp_path) == {"a/b.png", "a/metadata.jsonl"}


@pytest.mark.parametrize(
    ("benchmark", "text", "arguments", "words"),
    [
        ("geneval", '{"index": 0, "data": "a ball"}', (), "line 1, is no object with index, data, additional_info"),
        ("dpg", "a ball", (), "line 1, is no object with index, data"),
        ("dpg", '{"index": "../a", "data": "a ball"}', (), "'../a' of the prompts cannot be the name of a file"),
        ("gedit", '["a"]', (), "is not GEdit_en.json"),
        ("vbench", '{"data": "a ball"}', (), "line 1, is no object with data, original_prompt_en"),
        ("dpg", '{"index": "1", "data": "a ball"}', ("--shard=3/2",), "'3/2' is not like 1/4"),
        ("dpg", '{"index": "1", "data": "a ball"}', ("--limit=0",), "not a number from 1 on"),
        ("dpg", '{"index": "1", "data": "a ball"}', (), f"{NOWHERE}/object_info/LanceGuidance does not answer"),
        ("dpg", None, (), "No such file"),
    ],
)
def test_it_says_what_is_wrong(tmp_path, benchmark, text, arguments, words):
    prompts = tmp_path / "prompts"
    if text is not None:
        prompts.write_text(text)
    done = render(benchmark, prompts, "--servers", NOWHERE, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", ["seed=1", "prompt=a", "5.seed=1"])
def test_prompts_and_seeds_are_the_benchmarks_own(paper, setting):
    with pytest.raises(ValueError, match="the benchmark's own"):
        paper.build(paper.BENCHMARKS["geneval"], "geneval", {}, [paper.client.setting(setting)])
