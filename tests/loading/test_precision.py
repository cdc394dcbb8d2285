"""Weights in memory have the format of the file, or the one that was chosen."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui_lance.dev.host import tiny_checkpoint
from comfyui_lance.lance_model import loading
from safetensors.torch import load_file
from support.checkpoints import MODEL, VAE, VISION, save
from support.sampling import generate, relative


def is_projection(name: str) -> bool:
    return ".layers." in name and name.endswith(("_proj.weight", "_proj_moe_gen.weight"))


@pytest.mark.parametrize(
    ("weight_dtype", "dtype", "error"),
    [
        ("fp8_e4m3fn", torch.float8_e4m3fn, 0.1),
        ("fp8_e5m2", torch.float8_e5m2, 0.2),
    ],
)
def test_fp8_casts_the_projections_alone(weight_dtype, dtype, error, tiny, picture):
    model, clip, _ = loading.load(tiny / MODEL, weight_dtype=weight_dtype)
    weights = model.model.diffusion_model.state_dict()
    cast = [name for name in weights if weights[name].dtype == dtype]
    assert cast == [name for name in weights if is_projection(name)]
    assert len(cast) == tiny_checkpoint.LAYERS * 2 * (4 + 3)
    assert {weights[name].dtype for name in weights.keys() - set(cast)} == {torch.float32}
    assert {weight.dtype for weight in clip.cond_stage_model.parameters()} == {torch.float32}
    assert 1e-4 < relative(generate(model, clip), picture) < error


def convert(path: Path, out: Path, dtype: Callable[[str], torch.dtype]) -> Path:
    return save({name: weight.to(dtype(name)) for name, weight in load_file(path).items()}, out)


def test_a_bf16_file_stays_bf16_in_memory(tiny, tmp_path, picture):
    model = convert(tiny / MODEL, tmp_path / MODEL, lambda name: torch.bfloat16)
    vision = convert(tiny / VISION, tmp_path / VISION, lambda name: torch.bfloat16)
    model, clip, _ = loading.load(model, vision, tiny / VAE)
    weights = [*model.model.diffusion_model.parameters(), *clip.cond_stage_model.parameters()]
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert 1e-5 < relative(generate(model, clip), picture) < 0.05


@pytest.mark.parametrize("small", [torch.float32, torch.float8_e4m3fn])
def test_a_file_in_fp8_stays_so_in_its_projections(small, tiny, tmp_path, picture):
    fp8 = torch.float8_e4m3fn
    path = convert(tiny / MODEL, tmp_path / MODEL, lambda name: fp8 if is_projection(name) else small)
    model, clip, _ = loading.load(path, tiny / VISION, tiny / VAE)
    weights = model.model.diffusion_model.state_dict()
    assert {weight.dtype for name, weight in weights.items() if is_projection(name)} == {fp8}
    rest = {weight.dtype for name, weight in weights.items() if not is_projection(name)}
    assert rest == {torch.float32 if small == torch.float32 else torch.bfloat16}
    assert relative(generate(model, clip), picture) < 0.2
