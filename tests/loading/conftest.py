"""Fixtures of the tests that load files."""

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import pytest
import torch
from comfyui_lance.lance_model import loading
from safetensors.torch import load_file
from support.checkpoints import MODEL, VAE, VISION, Repository, Weights, official
from support.sampling import generate


@pytest.fixture()
def dynamic(monkeypatch) -> list[torch.Tensor]:
    """Dynamic VRAM, with which ComfyUI has a reader of its own; the tensors that it has given out."""
    given = []

    def load_safetensors(path):
        tensors = load_file(path)
        given.extend(tensors.values())
        return tensors, {}

    monkeypatch.setattr(comfy.utils, "load_safetensors", load_safetensors)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    return given


@pytest.fixture(scope="session")
def weights(tiny) -> Weights:
    """The tiny checkpoint's, with a vocabulary of 64 tokens to make the files small."""
    transformer, vision, vae = (load_file(tiny / name) for name in (MODEL, VISION, VAE))
    transformer = {key: value[:64].clone() if len(value) > 100_000 else value for key, value in transformer.items()}
    return Weights(transformer, vision, vae, tiny / VAE)


@pytest.fixture()
def repository(weights, tmp_path) -> Repository:
    official(tmp_path, weights)
    return Repository(tmp_path, weights)


@pytest.fixture(scope="session")
def picture(tiny) -> torch.Tensor:
    """What the tiny checkpoint makes in its own precision."""
    return generate(*loading.load(tiny / MODEL)[:2])
