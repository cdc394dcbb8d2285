"""The vision encoder: what ComfyUI's own computes, in any number format, in few calls."""

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.text_encoders.qwen_vl import Qwen2VLVisionTransformer
from comfyui_lance.lance_model import vision

DIMS = {"hidden_size": 64, "output_hidden_size": 32, "intermediate_size": 96, "num_heads": 2, "num_layers": 4}
# Whole windows alone, edges cut on one side and both, less than a window, frames.
GRIDS = [(1, 16, 16), (1, 16, 12), (1, 20, 24), (1, 18, 22), (1, 4, 6), (3, 16, 16), (5, 18, 10)]
PICTURE, CLIP = (1, 48, 48), (35, 34, 58)  # of 672 x 672 pixels; six seconds at 812 x 476


def encoders(dtype: torch.dtype = torch.float32, **changes) -> list[torch.nn.Module]:
    """ComfyUI's and Lance's, of the same random weights."""
    kinds = (Qwen2VLVisionTransformer, vision.VisionEncoder)
    made = [kind(**DIMS | changes, device="cpu", dtype=dtype, ops=comfy.ops.manual_cast) for kind in kinds]
    generator = torch.Generator().manual_seed(1)
    for weight in made[0].parameters():
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator).to(dtype)
    made[1].load_state_dict(made[0].state_dict())
    for encoder in made:
        encoder.fullatt_block_indexes = [1, 3]
        encoder.requires_grad_(False)
    return made


def patches(grid) -> torch.Tensor:
    return torch.randn(grid[0] * grid[1] * grid[2], 1176, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("grid", GRIDS)
def test_it_computes_what_comfyuis_own_does(grid):
    core, ours = encoders()
    torch.testing.assert_close(ours(patches(grid), grid), core(patches(grid), torch.tensor([grid])), atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_sees_in_16_bits(dtype, grid):
    exact = encoders()[1](patches(grid), grid)
    found = encoders(dtype)[1](patches(grid).to(dtype), grid)
    assert found.dtype == dtype
    assert (found.float() - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("grid, most", [(PICTURE, 32), (CLIP, 28 * 4 + 4)])
def test_equal_windows_are_attended_in_one_call(grid, most, monkeypatch):
    small = {"hidden_size": 8, "output_hidden_size": 8, "intermediate_size": 8, "num_layers": 32}
    encoder, calls = encoders(**small)[1], []
    encoder.fullatt_block_indexes = [7, 15, 23, 31]

    def attention(q, k, v, heads, **options):
        calls.append(q.shape)
        return q.transpose(1, 2).flatten(2)

    monkeypatch.setattr(vision, "optimized_attention_for_device", lambda *args, **kwargs: attention)
    assert torch.isfinite(encoder(patches(grid), grid)).all()
    assert len(calls) <= most


def test_it_can_be_trained():
    encoder = encoders()[1].requires_grad_(True)
    encoder(patches((1, 18, 22)), (1, 18, 22)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in encoder.parameters())


def test_the_estimate_of_memory_goes_by_what_is_computed_in(lance, monkeypatch):
    clip = lance[1]
    tokens = clip.tokenize("a fox", image=torch.rand(1, 64, 64, 3))
    sizes = []
    for answer in (True, False):
        monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *args, answer=answer, **kwargs: answer)
        monkeypatch.setattr(clip.cond_stage_model, "dtype", torch.bfloat16)
        sizes.append(clip.cond_stage_model.memory_estimation_function(tokens, device=torch.device("cpu")))
    assert 2 * sizes[0] == sizes[1] > 0
