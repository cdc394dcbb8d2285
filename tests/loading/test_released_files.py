"""Files of the real model's size: every key has its place, and no weight is in memory twice."""

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import psutil
import pytest
import torch
from comfyui_lance.dev.host import tiny_checkpoint
from comfyui_lance.lance_model import loading
from comfyui_lance.lance_model.checkpoint import assign, read_header, transformer_prefix
from comfyui_lance.lance_model.config import TransformerConfig, VisionConfig
from comfyui_lance.lance_model.language import LanceLanguage
from comfyui_lance.lance_model.transformer import LanceTransformer
from support.checkpoints import MODEL, SIZES, VAE, VISION, Shapes, resident, write_sparse


@pytest.fixture()
def real_shapes(monkeypatch) -> dict[str, Shapes]:
    """Keys and shapes of the released files."""
    for name, value in {
        "HIDDEN": 2048,
        "MLP": 11008,
        "LAYERS": 36,
        "HEADS": 16,
        "KV_HEADS": 2,
        "HEAD_DIM": 128,
        "VIT_HIDDEN": 1280,
        "VIT_DEPTH": 32,
        "VIT_MLP": 3420,
    }.items():
        monkeypatch.setattr(tiny_checkpoint, name, value)
    transformer, vision = tiny_checkpoint.transformer_shapes(), tiny_checkpoint.vit_shapes()
    bundled = {f"vit_model.{name}": shape for name, shape in vision.items()}
    table = "latent_pos_embed.pos_embed"
    return {
        "Lance_3B": transformer | {table: (64 * 64, 2048)},
        "Lance_3B_Video": transformer | {table: (31 * 64 * 64, 2048)} | bundled,
        "Qwen2.5-VL-ViT": vision,
    }


def module_shapes(module: torch.nn.Module) -> Shapes:
    return {name: tuple(weight.shape) for name, weight in module.state_dict().items()}


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize(
    ("name", "keys", "gigabytes"),
    [
        ("Lance_3B/model.safetensors", 1021, 12.4),
        ("Lance_3B/ema.safetensors", 1021, 12.4),
        ("Lance_3B_Video/model.safetensors", 1411, 14.2),
        ("Qwen2.5-VL-ViT/vit.safetensors", 390, 1.3),
    ],
)
def test_every_key_of_a_released_file_has_its_place(name, keys, gigabytes, dtype, real_shapes, tmp_path):
    path = write_sparse(tmp_path / name, real_shapes[name.split("/")[0]], dtype)
    header = read_header(path)
    assert len(header.shapes) == keys and set(header.dtypes.values()) == {dtype}
    assert path.stat().st_size * 2 / SIZES[dtype] == pytest.approx(gigabytes * 1e9, abs=5e7)

    released = keys > 390
    parts = assign(header, transformer_prefix(header) if released else "")
    placed = [key for part in (parts.model, parts.language, parts.vision) for key in part.keys.values()]
    dropped = {"latent_pos_embed.pos_embed"} if released else set()
    assert sorted(placed) == sorted(header.shapes.keys() - dropped) and not parts.unknown and not parts.vae.keys

    settings = {"device": "meta", "operations": comfy.ops.manual_cast}
    vision = VisionConfig(1280, 32, 3420, 2048, 16, (7, 15, 23, 31))
    clip = module_shapes(LanceLanguage(2048, 151936, vision, None, **settings))
    seen = {name: shape for name, shape in clip.items() if name.startswith("visual.")}
    assert len(seen) == 390 and parts.vision.shapes == (seen if keys != 1021 else {})
    if released:
        config = TransformerConfig(hidden=2048, layers=36, inner=11008, heads=16, kv_heads=2, head_dim=128, channels=48)
        assert TransformerConfig.from_shapes(parts.model.shapes) == config
        assert parts.model.shapes == module_shapes(LanceTransformer(**vars(config), **settings))
        assert parts.language.shapes == {name: shape for name, shape in clip.items() if name not in seen}
    if parts.vision.keys:
        shapes = {name.removeprefix("visual."): shape for name, shape in parts.vision.shapes.items()}
        assert VisionConfig.from_shapes(shapes, {}) == vision


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().total < 15e9, reason="mapping 12.4 GB takes about as much RAM, even unread")
def test_with_dynamic_vram_the_real_model_is_mapped_not_copied(real_shapes, tiny, tmp_path, dynamic):
    for name in ("Lance_3B/model.safetensors", "Qwen2.5-VL-ViT/vit.safetensors"):
        write_sparse(tmp_path / name, real_shapes[name.split("/")[0]], "BF16")
    resident(peak=True)
    before = resident()
    model, clip, _ = loading.load(tmp_path / MODEL, vae=tiny / VAE)
    assert resident() - before < 0.5e9 and resident(peak=True) - before < 0.7e9
    assert model.model_size() == pytest.approx(11.1e9, rel=0.01)
    assert clip.patcher.model_size() == pytest.approx((1.25 + 1.34) * 1e9, rel=0.01)
    weights = [*model.model.diffusion_model.parameters(), *clip.cond_stage_model.parameters()]
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert not any(weight.is_meta for weight in weights) and weights[-1].sum() == 0


@pytest.mark.parametrize("dtype", SIZES)
def test_elsewhere_each_weight_is_in_memory_once_even_while_it_is_read(dtype, real_shapes, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *args, **kwargs: True)  # makes F32 half of it
    monkeypatch.setattr(tiny_checkpoint, "LAYERS", 2)
    monkeypatch.setattr(tiny_checkpoint, "VIT_DEPTH", 8)
    monkeypatch.setattr(tiny_checkpoint, "VOCAB", 20_000)
    write_sparse(tmp_path / MODEL, tiny_checkpoint.transformer_shapes(), dtype)
    write_sparse(tmp_path / VISION, tiny_checkpoint.vit_shapes(), dtype)
    resident(peak=True)
    before = resident()
    model, clip, _ = loading.load(tmp_path / MODEL, vae=tiny / VAE)
    size = model.model_size() + clip.patcher.model_size()
    assert size == pytest.approx(1.18e9, rel=0.05)
    largest = 20_000 * 2048 * SIZES[dtype]
    assert resident() - before < 1.05 * size and resident(peak=True) - before < 1.05 * size + largest
