"""Load Lance's choices: automatic ones take what is on the disk, downloads bring what is not."""

from __future__ import annotations

import io
import shutil
import time
from pathlib import Path

import folder_paths
import pytest
import torch
from comfyui_lance.dev.host import workflows
from comfyui_lance.dev.host.server import ComfyServer
from comfyui_lance.dev.host.watching import watch
from comfyui_lance.lance_model import download, found
from comfyui_lance.lance_model.checkpoint import CheckpointError
from comfyui_lance.nodes import loader
from safetensors.torch import load_file, save_file
from support.hub import Hub

PICTURES, CLIPS = loader.AUTOMATIC
MODEL, VIDEO = "Lance_3B/model.safetensors", "Lance_3B_Video/model.safetensors"
KINDS = (found.PICTURES, found.CLIPS)


@pytest.fixture()
def models(tmp_path, monkeypatch) -> Path:
    """ComfyUI's models folder, with nothing in it."""
    names = ("lance", "diffusion_models", "checkpoints", "text_encoders", "vae")
    folders = {name: ([str(tmp_path / name)], set()) for name in names}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folders)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path / "temp"))
    return tmp_path


@pytest.fixture()
def put(models, tiny):
    """Links a file of the tiny checkpoint into a folder of models."""

    def put(name: str, file: str = MODEL) -> None:
        path = models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(tiny / file)

    return put


def test_automatic_comes_first_and_downloads_stay_once_they_have_come(models, put):
    """Or the page would mark the choice of a workflow that was saved with it."""
    downloads = ["download Lance_3B (16.5 GB in all)", "download Lance_3B_Video (18.3 GB in all)"]
    assert loader.models() == [PICTURES, CLIPS, *downloads, loader.NANO]
    put(f"lance/{MODEL}")
    put("diffusion_models/lance_3b_video.safetensors")
    files = [MODEL, "lance_3b_video.safetensors"]
    assert loader.models() == [PICTURES, CLIPS, *files, *downloads, loader.NANO]
    assert all(loader.LoadLance.validate_inputs(choice) is True for choice in loader.models())


@pytest.mark.parametrize(
    ("files", "pictures", "clips"),
    [
        ([], None, None),
        ([f"lance/{MODEL}", f"lance/{VIDEO}"], MODEL, VIDEO),
        ([f"lance/Lance/{VIDEO}", f"lance/Lance/{MODEL}"], f"Lance/{MODEL}", f"Lance/{VIDEO}"),
        ([f"lance/{MODEL}"], MODEL, MODEL),
        ([f"lance/{VIDEO}"], VIDEO, VIDEO),
        (["lance/lance_3b_video.sft", "lance/lance_3b.sft"], "lance_3b.sft", "lance_3b_video.sft"),
        (["checkpoints/lance_fp8.sft", "checkpoints/lance_video_fp8.sft"], "lance_fp8.sft", "lance_video_fp8.sft"),
        (["diffusion_models/lance_fp8.safetensors", f"lance/{MODEL}"], MODEL, MODEL),
        (["lance/mine.sft"], "mine.sft", "mine.sft"),
        (["diffusion_models/mine.safetensors"], None, None),
        (["lance/Lance_3B/ema.safetensors", f"lance/{MODEL}"], MODEL, MODEL),
    ],
)
def test_the_checkpoint_is_found_by_its_name(files, pictures, clips, put):
    for file in files:
        put(file)
    assert [loader.automatic(kind) for kind in KINDS] == [pictures, clips]


def test_other_files_are_not_taken_for_lance(models, put):
    put("lance/Qwen2.5-VL-ViT/vit.safetensors", "Qwen2.5-VL-ViT/vit.safetensors")
    put("checkpoints/freelance.safetensors", "Wan2.2_VAE.safetensors")
    lora = "diffusion_model.language_model.model.layers.0.self_attn.q_proj_moe_gen.lora_A.weight"
    save_file({lora: torch.zeros(4, 4)}, models / "lance" / "lance_style.safetensors")
    assert loader.automatic(found.PICTURES) is None


def test_a_damaged_lance_is_told_unless_there_is_another(models, put):
    path = models / "lance" / MODEL
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x10" + bytes(100))
    with pytest.raises(CheckpointError, match="model.safetensors .* is incomplete"):
        loader.automatic(found.PICTURES)
    put("diffusion_models/lance_fp8.safetensors")
    assert loader.automatic(found.PICTURES) == "lance_fp8.safetensors"


def test_a_folder_that_is_gone_takes_no_node_with_it(models, put):
    put(f"lance/{MODEL}")
    assert MODEL in loader.models()
    shutil.rmtree(models / "lance")
    assert loader.models()[2:] == [*loader.DOWNLOADS, loader.NANO]


def test_automatic_loads_and_says_what_it_took(models, put, caplog):
    caplog.set_level("INFO")

    def width(choice: str) -> int:
        caplog.clear()
        return loader.LoadLance.execute(choice, "default", "auto", "auto").result[0].model.diffusion_model.hidden

    nano = width(PICTURES)
    assert "Demonstration model" in caplog.text and "download" in caplog.text
    put(f"lance/{MODEL}")
    put("vae/wan2.2_vae.safetensors", "Wan2.2_VAE.safetensors")
    assert width(PICTURES) == 64 != nano and f"Load Lance: {MODEL}" in caplog.messages
    assert width(CLIPS) == 64 and f"Load Lance: {MODEL}, as there is no Lance_3B_Video" in caplog.messages


def test_files_that_come_are_noticed(models, put):
    def now(model: str) -> tuple:
        return loader.LoadLance.fingerprint_inputs(model=model, vision="auto", weight_dtype="default", vae="auto")

    nothing = now(PICTURES)
    assert nothing == now(PICTURES)
    put(f"lance/{MODEL}")
    model = now(PICTURES)
    assert model != nothing and model == now(PICTURES)
    unseeing = now(MODEL)
    put("lance/Qwen2.5-VL-ViT/vit.safetensors", "Qwen2.5-VL-ViT/vit.safetensors")
    assert now(PICTURES) != model and now(MODEL) != unseeing
    put("lance/another.safetensors")
    assert now(PICTURES) == (MODEL, str(models / "lance/Qwen2.5-VL-ViT/vit.safetensors"))


# ---- Downloads in the page -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tiny):
    """A hub with the tiny checkpoint as Lance."""
    vae = io.BytesIO()
    torch.save(load_file(tiny / "Wan2.2_VAE.safetensors"), vae)
    names = (MODEL, "Qwen2.5-VL-ViT/vit.safetensors", "Qwen2.5-VL-ViT/config.json")
    files = {name: (tiny / name).read_bytes() for name in names} | {"Wan2.2_VAE.pth": vae.getvalue()}
    with Hub(download.REPOSITORY, files) as hub:
        yield hub


@pytest.fixture(scope="module")
def bare(hub):
    """A running ComfyUI without weights, whose hub is this one."""
    server = ComfyServer()
    server.environment |= {"HF_ENDPOINT": hub.url, "NO_PROXY": "*"}
    with server:
        yield server


def picture(model: str) -> dict:
    prompt = workflows.load("text_to_image")
    workflows.of_type(prompt, "KSampler")[0]["steps"] = 1
    workflows.of_type(prompt, "LanceLoader")[0]["model"] = model
    return prompt


def offered(server) -> list[str]:
    return server.object_info()["LanceLoader"]["input"]["required"]["model"][1]["options"]


@pytest.mark.server
def test_a_download_is_chosen_refused_interrupted_and_resumed_in_the_page(bare, hub, monkeypatch):
    choice = "download Lance_3B (16.5 GB in all)"
    lance = bare.base / "models" / "lance"
    without = watch(bare.url, picture(PICTURES))
    assert without.end == "execution_success" and without.words == [
        "Demonstration model, as there is no Lance: choose a download to get it"
    ]
    assert not hub.requests and offered(bare)[:3] == [PICTURES, CLIPS, choice]

    monkeypatch.setattr(hub, "status", 503)
    refused = watch(bare.url, picture(choice))
    assert refused.error.startswith("Lance_3B cannot be downloaded: 127.0.0.1 is in trouble (503).")
    assert "\n" not in refused.error and "Traceback" not in refused.error

    monkeypatch.setattr(hub, "status", None)
    monkeypatch.setattr(hub, "while_sending", lambda name, sent: time.sleep(0.002 if name == MODEL else 0))
    loader_id = next(n for n, node in picture(choice).items() if node["class_type"] == "LanceLoader")

    def begun(event: str, data: dict) -> bool:
        return event == "progress" and data["node"] == loader_id and data["value"] > 0.6 * data["max"]

    stopped = watch(bare.url, picture(choice), interrupt_when=begun)
    assert stopped.end == "execution_interrupted" and stopped.of_type("progress")[-1]["max"] > 70e6
    assert list((lance / "Lance_3B").iterdir()) == list(lance.rglob("*.partial")) != []
    assert offered(bare)[:3] == [PICTURES, CLIPS, choice] and not any("partial" in name for name in offered(bare))

    monkeypatch.setattr(hub, "while_sending", lambda name, sent: None)
    kept = next(lance.rglob("*.partial")).stat().st_size
    done = watch(bare.url, picture(choice))
    assert done.end == "execution_success" and hub.sent(MODEL)[-1] == f"bytes={kept}-"
    assert done.words[-1] == MODEL
    assert (lance / MODEL).read_bytes() == hub.files[MODEL] and choice in offered(bare)

    hub.requests.clear()
    again = watch(bare.url, picture(choice))
    automatic = watch(bare.url, picture(PICTURES))
    assert again.end == automatic.end == "execution_success" and not hub.requests
    assert loader_id in again.of_type("execution_cached")[0]["nodes"]
    assert automatic.words == [MODEL]
