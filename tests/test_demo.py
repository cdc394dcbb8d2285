"""scripts/demo.py, and what the shipped video edit keeps of its source besides pictures: the sound."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from comfyui_lance.dev import demo
from comfyui_lance.dev.host import workflows

RATE, TONE = 44100, 440.0  # Hz


def write_clip(path: Path, seconds: float) -> None:
    """A gray clip at 12 fps that sounds."""
    times = np.arange(int(RATE * seconds)) / RATE
    wave = (0.5 * np.sin(2 * np.pi * TONE * times)).astype(np.float32)[None]
    with av.open(str(path), "w") as file:
        picture = file.add_stream("h264", rate=12)
        picture.width = picture.height = 64
        picture.pix_fmt = "yuv420p"
        sound = file.add_stream("aac", rate=RATE, layout="mono")
        for i in range(round(12 * seconds)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * i % 256, np.uint8), format="rgb24")
            file.mux(picture.encode(frame))
        file.mux(picture.encode())
        heard = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        heard.sample_rate, heard.time_base = RATE, Fraction(1, RATE)
        file.mux(sound.encode(heard))
        file.mux(sound.encode())


def heard(path: Path) -> tuple[float, float]:
    """(seconds, pitch in Hz) of a clip's sound."""
    with av.open(str(path)) as file:
        frames = list(file.decode(audio=0))
        wave = np.concatenate([frame.to_ndarray()[0] for frame in frames])
        rate = frames[0].sample_rate
    return len(wave) / rate, np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave)


def pictures(path: Path) -> int:
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


@pytest.mark.parametrize("name, length, frames", [("video_edit", 1.0, 9), ("long_video_edit", 7.0, 81)])
def test_a_video_edit_keeps_length_and_sound(server, name, length, frames):
    write_clip(server.base / "input" / f"{name}.mp4", length)
    prompt = workflows.load(name)
    for node, input in (("LoadVideo", "file"), ("LoadAudio", "audio")):
        for its in workflows.of_type(prompt, node):
            its[input] = f"{name}.mp4"
    workflows.of_type(prompt, "KSampler")[0]["steps"] = 2
    (path,) = server.outputs(server.wait(server.queue(prompt)))
    seconds, pitch = heard(path)
    assert pictures(path) == frames
    assert seconds == pytest.approx(length, abs=0.1) and pitch == pytest.approx(TONE, abs=5)


def test_a_continued_clip_repeats_no_frames(server):
    prompt = workflows.load("continued_clip")
    for sampler in workflows.of_type(prompt, "KSampler"):
        sampler["steps"] = 1
    (path,) = server.outputs(server.wait(server.queue(prompt)))
    assert pictures(path) == 3 * 9 - 2 * 5


@pytest.fixture()
def ran(server, monkeypatch, capsys, tmp_path):
    """(exit status, what was printed) of demo.py over some workflows, on a server that runs already."""

    def run(*names: str) -> tuple[int, str]:
        monkeypatch.setattr(workflows, "names", lambda: list(names))
        monkeypatch.setattr(demo, "ComfyServer", lambda weights, threads: nullcontext(server))
        monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path)])
        return demo.main(), "".join(capsys.readouterr())

    return run


def test_the_demo_leaves_what_the_workflows_make(ran, tmp_path):
    status, printed = ran("text_to_image", "text_to_video", "caption")
    assert status == 0 and "FAILED" not in printed
    files = {path.name: demo.describe(path) for path in tmp_path.iterdir()}
    assert files.pop("caption.txt")
    assert files == {"text_to_image.png": "64x64", "text_to_video.mp4": "64x64, 9 frames at 12 fps"}
    (text,) = [line for line in printed.splitlines() if line.startswith("    text: ")]
    assert "circle" in text or "background" in text


def test_the_demo_leaves_out_what_trains_for_minutes(ran, tmp_path):
    status, printed = ran("train_look", "text_to_image")
    assert status == 0 and "train_look: left out" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["text_to_image.png"]


def test_the_demo_names_a_workflow_that_fails_and_goes_on(ran, monkeypatch, tmp_path):
    load = workflows.load

    def broken(name: str) -> workflows.Prompt:
        prompt = load(name)
        if name == "image_edit":
            workflows.of_type(prompt, "LanceEncodeEdit")[0]["prompt"] = " "
        return prompt

    monkeypatch.setattr(workflows, "load", broken)
    status, printed = ran("image_edit", "text_to_image")
    assert status == 1 and "image_edit FAILED: LanceEncodeEdit: " in printed and "Failed: image_edit\n" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["text_to_image.png"]


def test_the_demo_runs_every_shipped_workflow():
    assert len(workflows.names()) > 10
    for suffix in ("json", "jpg"):
        found = {path.name for path in workflows.WORKFLOWS.glob(f"*.{suffix}")}
        assert found == {f"{template}.{suffix}" for template in workflows.templates()}


def test_the_demo_wants_a_folder_of_weights(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--weights", "nowhere"])
    with pytest.raises(SystemExit):
        demo.main()
    assert "there is no folder nowhere" in capsys.readouterr().err
