"""Every layout of the files gives the same weights, also on hosts that load them in other ways."""

from dataclasses import replace

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import pytest
import torch
from comfyui_lance.lance_model import loading
from support.checkpoints import LAYOUTS, VAE, VISION_CONFIG, check_weights, official, save


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_model(layout, weights, tmp_path):
    check_weights(loading.load(**layout(tmp_path, weights)), weights)


@pytest.mark.parametrize("model", ["Lance_3B/ema.safetensors", "Lance_3B_Video/model.safetensors"])
def test_every_transformer_of_the_repository_loads(model, weights, tmp_path):
    check_weights(loading.load(**official(tmp_path, weights, model)), weights)


def test_the_vae_may_be_the_original_pickle(weights, tmp_path):
    arguments = official(tmp_path, weights)
    (tmp_path / VAE).unlink()
    save(weights.vae, tmp_path / "Wan2.2_VAE.pth")
    check_weights(loading.load(**arguments), weights)


def test_a_chosen_part_wins_over_the_one_beside_the_model(weights, tmp_path):
    arguments = official(tmp_path, replace(weights, vision={key: value + 1 for key, value in weights.vision.items()}))
    save({key: value + 1 for key, value in weights.vae.items()}, tmp_path / VAE)
    chosen = save(weights.vision, tmp_path / "mine" / "vit.safetensors", {"vision_config": VISION_CONFIG})
    check_weights(
        loading.load(**arguments, vision=chosen, vae=save(weights.vae, tmp_path / "my_vae.safetensors")), weights
    )


def test_layers_that_get_their_weights_late_are_filled_as_well(weights, tmp_path, dynamic):
    """With dynamic VRAM, ComfyUI's layers have no weights before a state dict is loaded, and files go another way."""
    assert comfy.ops.manual_cast.Linear(2, 2).weight is None
    loaded = loading.load(**official(tmp_path, weights))
    check_weights(loaded, weights)
    mapped = {tensor.data_ptr() for tensor in dynamic}
    assert all(weight.data_ptr() in mapped for weight in loaded[0].model.diffusion_model.parameters())


class Newer(comfy.model_patcher.ModelPatcher):
    """As of ComfyUI 0.37."""

    def __init__(self, model, load_device, offload_device, size=0, weight_inplace_update=False, fast_disk=False):
        super().__init__(model, load_device, offload_device, size, weight_inplace_update)
        self.fast_disk = fast_disk


@pytest.mark.parametrize("mapped", [True, False])
def test_newer_hosts_are_told_whether_weights_may_be_read_again(mapped, weights, tmp_path, monkeypatch, request):
    """Those hosts ask their own function, which knows mapped tensors by a mark on their storage."""
    given = request.getfixturevalue("dynamic") if mapped else []

    def state_dict_fast_disk(state_dict):
        pointers = {tensor.data_ptr() for tensor in given}
        return bool(pointers) and all(weight.data_ptr() in pointers for weight in state_dict.values())

    monkeypatch.setattr(loading, "state_dict_fast_disk", state_dict_fast_disk)
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Newer)
    model, clip, _ = loading.load(**official(tmp_path, weights))
    assert clip.patcher.parent.fast_disk == model.parent.fast_disk == mapped


def test_torch_compile_and_several_gpus_get_a_module_of_their_own(weights, tmp_path, monkeypatch):
    class Dynamic(comfy.model_patcher.ModelPatcher):
        """Stands for the patcher that main.py puts in place on a GPU."""

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
    model, clip, _ = loading.load(**official(tmp_path, weights))
    for patcher in (model, clip.patcher):
        build, arguments = patcher.cached_patcher_init
        own = build(*arguments, disable_dynamic=True)
        assert type(patcher) is Dynamic
        assert type(own) is comfy.model_patcher.ModelPatcher and own.model is not patcher.model
        ours, theirs = patcher.model.state_dict(), own.model.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
