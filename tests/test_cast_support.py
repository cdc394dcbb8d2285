"""Formats that a device cannot hold or compute with: ComfyUI's own functions answer as such a device does."""

import logging
import shutil

import comfy.model_management
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from comfyui_lance.lance_model import loading
from support.checkpoints import MODEL, save
from support.formats import FORMATS, TENSORS, beside, in_bf16, velocity
from support.sampling import relative

FLOATS = {torch.float32, torch.float16, torch.bfloat16}


def held(loaded) -> set[torch.dtype]:
    parameters = list(loaded[0].model.diffusion_model.parameters())
    assert not any(isinstance(weight, QuantizedTensor) for weight in parameters)
    return {weight.dtype for weight in parameters}


def a_device(holds: set[torch.dtype], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(comfy.model_management, "supports_cast", lambda device, dtype: dtype in holds)


@pytest.fixture()
def apple(monkeypatch):
    """Takes no fp8."""
    a_device(FLOATS, monkeypatch)


@pytest.fixture(scope="module")
def weights(tiny) -> TENSORS:
    return in_bf16(tiny)


@pytest.fixture()
def bf16_file(weights, tmp_path):
    return save(weights, tmp_path / "model.safetensors")


@pytest.mark.parametrize("weight_dtype", loading.WEIGHT_DTYPES)
def test_fp8_is_not_given_to_a_device_that_cannot_hold_it(weight_dtype, apple, bf16_file, tiny, caplog):
    loaded = loading.load(bf16_file, **beside(tiny), weight_dtype=weight_dtype)
    assert held(loaded) == {torch.bfloat16}
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == (weight_dtype != "default")
    assert all("cannot hold fp8 weights: model.safetensors is held in bfloat16" in message for message in said)


@pytest.mark.parametrize("format", FORMATS)
def test_quantised_files_become_plain_there(format, apple, weights, tiny, tmp_path, caplog, monkeypatch):
    make, stored, _ = FORMATS[format]
    path = make(weights, tmp_path / "model.safetensors")
    loaded = loading.load(path, **beside(tiny))
    assert held(loaded) == {torch.bfloat16}
    assert ("cannot hold quantised weights" in caplog.text) == (stored is not None)
    monkeypatch.undo()
    quantised = loading.load(shutil.copy(path, tmp_path / "again.safetensors"), **beside(tiny))
    assert relative(velocity(loaded), velocity(quantised)) < 0.02


def test_an_fp8_file_becomes_bf16_there(apple, weights, tiny, tmp_path, caplog):
    fp8 = {name: w.to(torch.float8_e4m3fn) if ".layers." in name and w.ndim == 2 else w for name, w in weights.items()}
    assert held(loading.load(save(fp8, tmp_path / "model.safetensors"), **beside(tiny))) == {torch.bfloat16}
    assert "cannot hold fp8 weights" in caplog.text


def test_a_device_without_bf16_gets_float32(bf16_file, tiny, monkeypatch, caplog):
    a_device({torch.float32, torch.float16}, monkeypatch)
    loaded = loading.load(bf16_file, **beside(tiny))
    assert held(loaded) == {torch.float32} == {weight.dtype for weight in loaded[1].cond_stage_model.parameters()}
    assert caplog.text.count("cannot hold bfloat16 weights: model.safetensors is held in float32") == 2


def test_a_card_that_computes_in_float32_alone_holds_16_bits(bf16_file, tiny, monkeypatch, tmp_path):
    """As Turing answers: bf16 is no format to compute with, and one to hold what is too large for its 11 GB."""

    def should_use_bf16(device=None, model_params=0, prioritize_performance=True, manual_cast=False):
        return manual_cast and (not prioritize_performance or model_params * 4 > 11e9)

    expected = velocity(loading.load(bf16_file, **beside(tiny)))
    float32_file = shutil.copy(tiny / MODEL, tmp_path / "float32.safetensors")  # which no other test has in use
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", should_use_bf16)
    loaded = loading.load(float32_file, **beside(tiny))
    assert held(loaded) == {torch.bfloat16} == {weight.dtype for weight in loaded[1].cond_stage_model.parameters()}
    assert loaded[0].model.get_dtype_inference() == torch.float32
    assert relative(velocity(loaded), expected) < 1e-6


def test_a_weight_dtype_that_changes_nothing_is_said(weights, tiny, tmp_path, caplog):
    path = FORMATS["nvfp4"][0](weights, tmp_path / "model.safetensors")
    loading.load(path, **beside(tiny), weight_dtype="fp8_e4m3fn")
    assert "model.safetensors is quantised already: weight_dtype fp8_e4m3fn changes nothing" in caplog.text
