"""Load Lance finds the files in ComfyUI's folders, and what it has loaded can be saved."""

from pathlib import Path

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfyui_lance.lance_model import loading
from comfyui_lance.lance_model.checkpoint import CheckpointError
from comfyui_lance.nodes import loader
from support.checkpoints import MODEL, VAE, VISION, check_weights, comfy_folders, official, single_file, text_encoder


@pytest.fixture()
def models(tmp_path, monkeypatch) -> Path:
    """ComfyUI's models folder, empty."""
    folders = {}
    for name in ("lance", "diffusion_models", "checkpoints", "text_encoders", "vae"):
        (tmp_path / name).mkdir()
        folders[name] = ([str(tmp_path / name)], {".safetensors", ".pth"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folders)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def run_node(model: str, vision: str = loader.AUTO, vae: str = loader.AUTO):
    assert loader.LoadLance.validate_inputs(model) is True
    return loader.LoadLance.execute(model, "default", vision, vae).result


def test_the_node_loads_the_repository_from_models_lance(models, weights):
    official(models / "lance" / "Lance", weights)
    assert list(loader.model_files()) == [f"Lance/{MODEL}"]
    assert list(loader.vision_files()) == [f"Lance/{VISION}"] and list(loader.vae_files()) == [f"Lance/{VAE}"]
    check_weights(run_node(f"Lance/{MODEL}"), weights)


def test_the_node_loads_parts_from_comfyuis_folders(models, weights):
    comfy_folders(models, weights)
    check_weights(run_node("lance.safetensors"), weights)


def test_the_node_loads_chosen_parts(models, weights):
    text_encoder(models, weights)
    check_weights(run_node("lance.safetensors", "lance.safetensors", "wan2.2_vae.safetensors"), weights)


def test_the_node_offers_a_single_file_whatever_its_name(models, weights):
    path = single_file(models, weights)["transformer"]
    path.rename(models / "lance" / "lance_with_vit_and_vae.safetensors")
    check_weights(run_node("lance_with_vit_and_vae.safetensors"), weights)


def test_the_node_refuses_gguf_in_a_sentence(models, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "lance", ([str(models / "lance")], set()))
    (models / "lance" / "lance_q4.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(CheckpointError, match="lance_q4.gguf is a GGUF file"):
        run_node("lance_q4.gguf")


def test_the_node_tells_which_choice_does_not_exist(models, weights):
    validate = loader.LoadLance.validate_inputs
    nothing = validate("gone.safetensors")
    assert "'gone.safetensors'" in nothing and f"There is: {loader.NANO}." in nothing and "models/lance" in nothing
    assert "'automatic (pictures)'" in nothing
    official(models / "lance", weights)
    other = validate("gone.safetensors")
    assert "'gone.safetensors'" in other and f"There is: {MODEL}, {loader.NANO}." in other


@pytest.mark.parametrize("gone", [MODEL, VISION, VAE])
def test_the_node_tells_which_file_went_after_it_was_chosen(gone, models, weights):
    official(models / "lance", weights)
    assert loader.LoadLance.validate_inputs(MODEL) is True
    (models / "lance" / gone).unlink()
    with pytest.raises(CheckpointError, match="There is no file") as refused:
        loader.LoadLance.execute(MODEL, "default", VISION, VAE)
    assert gone in str(refused.value)


def test_what_comfyuis_save_checkpoint_writes_loads_again(lance, tiny, tmp_path):
    model, clip, vae = lance
    path = tmp_path / "saved.safetensors"
    comfy.sd.save_checkpoint(str(path), model, clip, vae, metadata={})
    (tmp_path / "config.json").write_bytes((tiny / "Qwen2.5-VL-ViT" / "config.json").read_bytes())
    for saved, original in zip(loading.load(path), lance):
        modules = [getattr(part, "model", None) or part.patcher.model for part in (saved, original)]
        weights = [module.state_dict() for module in modules]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
