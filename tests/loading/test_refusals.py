"""Files become MODEL, CLIP and VAE: every layout gives the same weights, every wrong file gives one clear sentence."""

import gc
import json
import math
import pickle
import random
import shutil
import struct
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.memory_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import psutil
import pytest
import torch
from comfyui_lance.dev.host import tiny_checkpoint
from comfyui_lance.lance_model import language, loading
from comfyui_lance.lance_model.checkpoint import CheckpointError, assign, read_header, transformer_prefix
from comfyui_lance.lance_model.config import TransformerConfig, VisionConfig
from comfyui_lance.lance_model.language import LanceLanguage, LanceTokenizer
from comfyui_lance.lance_model.transformer import LanceTransformer
from comfyui_lance.nodes import loader
from safetensors.torch import load_file, save_file
from sampling import sample, schedule

Shapes = dict[str, tuple[int, ...]]

MODEL, VISION, VAE = "Lance_3B/model.safetensors", "Qwen2.5-VL-ViT/vit.safetensors", "Wan2.2_VAE.safetensors"
LAYER = "language_model.model.layers.{}."
SIZES = {"F32": 4, "BF16": 2}


# ---- Files of the real model's size ----------------------------------------------------------------------------------


def write_sparse(path: Path, shapes: Shapes, dtype: str) -> Path:
    """A safetensors file of zeros that takes no disk: a true header, then a hole."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(entries).encode()
    raw += b" " * (-len(raw) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return path


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


def resident(peak: bool = False) -> int:
    """Bytes of memory that this process has, or at most had since its last `peak`."""
    kernel = Path("/proc/self")
    if not peak or not (kernel / "clear_refs").exists():
        return psutil.Process().memory_info().rss
    high = next(line for line in (kernel / "status").read_text().splitlines() if line.startswith("VmHWM"))
    (kernel / "clear_refs").write_text("5")
    return int(high.split()[1]) * 1024


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


# ---- Layouts ---------------------------------------------------------------------------------------------------------


@dataclass
class Weights:
    """State dicts of the three files."""

    transformer: dict[str, torch.Tensor]
    vision: dict[str, torch.Tensor]
    vae: dict[str, torch.Tensor]
    vae_file: Path

    def language(self) -> dict[str, torch.Tensor]:
        """What a text encoder's file holds: embeddings, head and vision encoder."""
        old = {"language_model.model.embed_tokens.": "embed_tokens.", "language_model.lm_head.": "lm_head."}
        moved = {
            new + key[len(start) :]: value
            for key, value in self.transformer.items()
            for start, new in old.items()
            if key.startswith(start)
        }
        return moved | {f"visual.{key}": value for key, value in self.vision.items()}

    def experts(self) -> dict[str, torch.Tensor]:
        """The transformer's file without embeddings and head."""
        return {
            key: value
            for key, value in self.transformer.items()
            if ".embed_tokens." not in key and ".lm_head." not in key
        }


@pytest.fixture(scope="module")
def weights(tiny) -> Weights:
    """The tiny checkpoint's, with a vocabulary of 64 tokens to make the files small."""
    transformer, vision, vae = (load_file(tiny / name) for name in (MODEL, VISION, VAE))
    transformer = {key: value[:64].clone() if len(value) > 100_000 else value for key, value in transformer.items()}
    return Weights(transformer, vision, vae, tiny / VAE)


@pytest.fixture(scope="module", autouse=True)
def quick_to_build(tiny):
    """Tokenizer and VAE, which take longest to build, stay in use throughout."""
    vae, tokenizer = loading.load(tiny / MODEL)[2], LanceTokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "LanceTokenizer", lambda: tokenizer)
        yield vae


VISION_CONFIG = json.dumps(tiny_checkpoint.VIT_CONFIG)


def save(weights: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if path.suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file({key: value.contiguous() for key, value in weights.items()}, path, metadata)
    return path


def link(file: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(file)
    return path


def official(root: Path, w: Weights, model: str = MODEL) -> dict:
    """The repository as downloaded. Returns arguments of `loading.load`, as every layout does."""
    save(w.vision, root / VISION).with_name("config.json").write_text(VISION_CONFIG)
    link(w.vae_file, root / VAE)
    return {"transformer": save(w.transformer, root / model)}


def nested(root: Path, w: Weights) -> dict:
    return official(root / "Lance", w) | {"folders": [root]}


def one_folder(root: Path, w: Weights) -> dict:
    return official(root, w, model="model.safetensors")


def float_table(root: Path, w: Weights) -> dict:
    """With the fixed table of positions, which is not a weight."""
    return official(root, replace(w, transformer=w.transformer | {"latent_pos_embed.pos_embed": torch.zeros(4096, 64)}))


def comfy_folders(root: Path, w: Weights) -> dict:
    link(w.vae_file, root / "vae" / "wan2.2_vae.safetensors")
    save(w.vision, root / "text_encoders" / "vit.safetensors", {"vision_config": VISION_CONFIG})
    return {
        "transformer": save(w.transformer, root / "diffusion_models" / "lance.safetensors"),
        "folders": [root / "text_encoders", root / "vae"],
    }


def text_encoder(root: Path, w: Weights) -> dict:
    return {
        "transformer": save(w.experts(), root / "diffusion_models" / "lance.safetensors"),
        "vision": save(w.language(), root / "text_encoders" / "lance.safetensors", {"vision_config": VISION_CONFIG}),
        "vae": link(w.vae_file, root / "vae" / "wan2.2_vae.safetensors"),
    }


def single_file(root: Path, w: Weights) -> dict:
    sections = {"model.diffusion_model.": w.experts(), "text_encoders.": w.language(), "vae.": w.vae}
    merged = {prefix + key: value for prefix, part in sections.items() for key, value in part.items()}
    return {"transformer": save(merged, root / "checkpoints" / "lance.safetensors", {"vision_config": VISION_CONFIG})}


def single_file_official_names(root: Path, w: Weights) -> dict:
    merged = {f"model.diffusion_model.{key}": value for key, value in w.transformer.items()}
    merged |= {f"text_encoders.visual.{key}": value for key, value in w.vision.items()}
    merged |= {f"vae.{key}": value for key, value in w.vae.items()}
    return {"transformer": save(merged, root / "lance.safetensors", {"vision_config": VISION_CONFIG})}


def bundled_vision(root: Path, w: Weights) -> dict:
    """The video file alone: its own vision encoder is better than none."""
    model = root / "Lance_3B_Video" / "model.safetensors"
    save(w.transformer | {f"vit_model.{key}": value for key, value in w.vision.items()}, model)
    model.with_name("config.json").write_text(json.dumps({"vision_config": tiny_checkpoint.VIT_CONFIG}))
    return {"transformer": model, "vae": link(w.vae_file, root / VAE)}


def bundled_and_standalone_vision(root: Path, w: Weights) -> dict:
    """The video file in the repository: the standalone vision encoder counts, the other one differs."""
    other = {f"vit_model.{key}": torch.zeros_like(value) for key, value in w.vision.items()}
    return official(root, replace(w, transformer=w.transformer | other), "Lance_3B_Video/model.safetensors")


LAYOUTS = [
    official,
    nested,
    one_folder,
    float_table,
    comfy_folders,
    text_encoder,
    single_file,
    single_file_official_names,
    bundled_vision,
    bundled_and_standalone_vision,
]


def state_dicts(loaded) -> list[dict[str, torch.Tensor]]:
    model, clip, vae = loaded
    return [
        module.state_dict() for module in (model.model.diffusion_model, clip.cond_stage_model, vae.first_stage_model)
    ]


def check_weights(loaded, w: Weights) -> None:
    """The modules hold the files' weights, all of them."""
    vae = loaded[2].first_stage_model.state_dict()
    expected_vae = {key: value.to(vae[key].dtype) for key, value in w.vae.items()}
    for found, expected in zip(state_dicts(loaded), (w.experts(), w.language(), expected_vae)):
        assert found.keys() == expected.keys()
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    visual = loaded[1].cond_stage_model.visual
    assert visual.fullatt_block_indexes == tiny_checkpoint.VIT_CONFIG["fullatt_block_indexes"]
    assert visual.blocks[0].attn.num_heads == tiny_checkpoint.VIT_CONFIG["num_heads"]


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


# ---- Precision -------------------------------------------------------------------------------------------------------


def generate(model, clip, steps: int = 2) -> torch.Tensor:
    noise = torch.randn(1, 48, 1, 4, 6, generator=torch.Generator().manual_seed(1))
    positive, negative = language.encode_pair(clip, "A red fox sleeps in the snow.")
    return sample(model, positive, negative, noise, schedule(steps, 3.5))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def is_projection(name: str) -> bool:
    return ".layers." in name and name.endswith(("_proj.weight", "_proj_moe_gen.weight"))


@pytest.fixture(scope="module")
def picture(tiny) -> torch.Tensor:
    """What the tiny checkpoint makes in its own precision."""
    return generate(*loading.load(tiny / MODEL)[:2])


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


# ---- Held once -------------------------------------------------------------------------------------------------------


def test_a_file_loaded_twice_is_held_once(tiny):
    (model, clip, vae), (model2, clip2, vae2) = (loading.load(tiny / MODEL) for _ in range(2))
    assert model.model is model2.model and clip.cond_stage_model is clip2.cond_stage_model and vae is vae2
    assert model is not model2 and clip.patcher is not clip2.patcher
    fp8 = loading.load(tiny / MODEL, weight_dtype="fp8_e4m3fn")[0]
    assert fp8.model is not model.model


def test_a_file_that_has_changed_is_read_anew(weights, tmp_path):
    arguments = official(tmp_path, weights)
    old = loading.load(**arguments)
    changed = replace(weights, transformer={key: value + 1 for key, value in weights.transformer.items()})
    official(tmp_path, changed)
    check_weights(loading.load(**arguments), changed)
    check_weights(old, weights)


def test_what_nobody_uses_is_freed(tiny, tmp_path):
    files = {"transformer": tiny / MODEL, "vae": shutil.copy(tiny / VAE, tmp_path / "vae.safetensors")}
    model, clip, vae = loading.load(**files)
    generate(model, clip, steps=1)
    held = [weakref.ref(module) for module in (model.model, clip.cond_stage_model, vae.first_stage_model)]
    again = loading.load(**files)
    del model, clip, vae
    gc.collect()
    assert all(module() is not None for module in held)
    del again
    gc.collect()
    assert [module() for module in held] == [None, None, None]


def test_a_lora_on_one_model_does_not_leak_into_the_other(tiny, picture):
    (model, clip, _), (other, _, _) = (loading.load(tiny / MODEL) for _ in range(2))
    key = "diffusion_model." + LAYER.format(0) + "self_attn.o_proj_moe_gen.weight"
    patched = model.clone()
    assert patched.add_patches({key: ("diff", (torch.ones(64, 64),))}) == [key]
    changed = generate(patched, clip)
    assert relative(changed, picture) > 0.01
    assert torch.equal(generate(other, clip), picture)
    assert torch.equal(generate(patched, clip), changed)
    del patched
    gc.collect()
    assert torch.equal(generate(other, clip), picture)


def test_a_lora_on_one_clip_does_not_leak_into_the_other(tiny):
    (_, clip, _), (_, other, _) = (loading.load(tiny / MODEL) for _ in range(2))

    def encode(clip) -> torch.Tensor:
        return clip.encode_from_tokens_scheduled(clip.tokenize("A red fox."))[0][0]

    plain = encode(clip)
    patched = clip.clone()
    patched.add_patches({"embed_tokens.weight": ("diff", (torch.ones(tiny_checkpoint.VOCAB, 64),))})
    changed = encode(patched)
    assert relative(changed, plain) > 0.1
    assert torch.equal(encode(other), plain)
    assert torch.equal(encode(patched), changed)


# ---- Wrong files -----------------------------------------------------------------------------------------------------


def refusal(arguments: dict) -> str:
    """The sentence with which these files are refused."""
    with pytest.raises(CheckpointError) as refused:
        loading.load(**arguments)
    message = str(refused.value)
    assert refused.type is CheckpointError and "\n" not in message and message.endswith(".") and len(message) < 500
    return message


@dataclass
class Repository:
    """The official layout, to be spoiled."""

    root: Path
    weights: Weights

    def model(self, **changes: torch.Tensor | None) -> dict:
        """Its transformer with tensors changed, or left out where None."""
        changed = {key: value for key, value in (self.weights.transformer | changes).items() if value is not None}
        return {"transformer": save(changed, self.root / MODEL)}

    def other(self, *keys: str) -> dict:
        """A file of another kind, chosen as the model."""
        tensors = {key: torch.zeros(4, 4) for key in keys}
        return {"transformer": save(tensors, self.root / "Lance_3B" / "other.safetensors")}

    def raw(self, content: bytes, name: str = MODEL) -> dict:
        (self.root / name).unlink(missing_ok=True)
        (self.root / name).write_bytes(content)
        return {"transformer": self.root / MODEL}

    def vae(self, keys: dict[str, torch.Tensor], name: str = "chosen.safetensors") -> dict:
        return {"transformer": self.root / MODEL, "vae": save(keys, self.root / name)}


@pytest.fixture()
def repository(weights, tmp_path) -> Repository:
    official(tmp_path, weights)
    return Repository(tmp_path, weights)


def cut_off(repository: Repository) -> dict:
    return repository.raw((repository.root / MODEL).read_bytes()[:-1000])


def without(name: str) -> Callable[[Repository], dict]:
    def spoil(repository: Repository) -> dict:
        path = repository.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return {"transformer": repository.root / MODEL}

    return spoil


def bagel(repository: Repository) -> dict:
    shapes = {"vae2llm.weight": (64, 64), "llm2vae.weight": (64, 64), "llm2vae.bias": (64,)}
    return repository.model(**{key: torch.zeros(shape) for key, shape in shapes.items()})


def vision_of_another_size(repository: Repository) -> dict:
    merger = {"merger.mlp.2.weight": torch.zeros(96, 256), "merger.mlp.2.bias": torch.zeros(96)}
    save(repository.weights.vision | merger, repository.root / VISION)
    return {"transformer": repository.root / MODEL}


def incomplete_vision(repository: Repository) -> dict:
    vision = dict(repository.weights.vision)
    del vision["blocks.2.attn.qkv.bias"]
    save(vision, repository.root / VISION)
    return {"transformer": repository.root / MODEL}


def without_layer(repository: Repository) -> dict:
    return repository.model(**{key: None for key in repository.weights.transformer if key.startswith(LAYER.format(1))})


def sd15_vae(repository: Repository) -> dict:
    return repository.vae(
        {
            "decoder.conv_in.weight": torch.zeros(512, 4, 3, 3),
            "decoder.conv_in.bias": torch.zeros(512),
            "encoder.down.2.downsample.conv.weight": torch.zeros(512, 512, 3, 3),
        }
    )


def incomplete_vae(repository: Repository) -> dict:
    vae = dict(repository.weights.vae)
    del vae["decoder.9.conv.0.weight"]
    return repository.vae(vae)


QUERY = LAYER.format(0) + "self_attn.q_proj_moe_gen"

# What a user may come up with → what the sentence must say.
WRONG = {
    "missing file": (
        lambda r: {"transformer": r.root / "Lance_3B" / "gone.safetensors"},
        ["There is no file", "gone", "Download"],
    ),
    "folder": (lambda r: {"transformer": r.root / "Lance_3B"}, ["Lance_3B is a folder", "model.safetensors inside"]),
    "LFS pointer": (
        lambda r: r.raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12400000000\n"),
        ["Git LFS pointer", "git lfs pull"],
    ),
    "empty file": (lambda r: r.raw(b""), ["model.safetensors is empty", "Download it again"]),
    "few bytes": (lambda r: r.raw(b"\x01\x02\x03"), ["(3 bytes)", "incomplete", "Download it again"]),
    "web page": (
        lambda r: r.raw(b"\n<!DOCTYPE html><html><body>Sign in</body></html>"),
        ["web page", "Download it again"],
    ),
    "pickle as safetensors": (
        lambda r: r.raw(pickle.dumps({"a": 1}) + b"\0" * 100),
        ["not a safetensors file", "Download it again"],
    ),
    "cut off": (cut_off, ["model.safetensors (", " bytes) is incomplete", "Download it again"]),
    "BAGEL": (bagel, ["BAGEL", "64 latent channels", "48"]),
    "stock Qwen2.5-VL": (
        lambda r: r.other("visual.blocks.0.norm1.weight", "model.layers.0.self_attn.q_proj.weight"),
        ["Qwen2.5-VL", "without", "generation expert"],
    ),
    "understanding-only extract": (
        lambda r: r.other("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"),
        ["understanding-only", "cannot make pictures"],
    ),
    "LoRA": (
        lambda r: r.other(f"diffusion_model.{QUERY}.lora_A.weight"),
        ["is a LoRA", "LoRA loader after Load Lance"],
    ),
    "GGUF": (lambda r: r.raw(b"GGUF" + bytes(60)), ["model.safetensors is a GGUF file", "convert.py"]),
    "another model": (
        lambda r: r.other("double_blocks.0.img_attn.qkv.weight"),
        ["another kind of model", "not a Lance transformer"],
    ),
    "no tensors": (lambda r: r.other(), ["another kind of model", "not a Lance transformer"]),
    "vision encoder as model": (
        lambda r: {"transformer": r.root / VISION},
        ["vit.safetensors is a vision encoder", "not a Lance transformer"],
    ),
    "VAE as model": (lambda r: {"transformer": r.root / VAE}, ["is a VAE", "not a Lance transformer"]),
    "SD VAE as model": (lambda r: r.other("decoder.mid.block_1.conv1.weight"), ["is a VAE", "not a Lance transformer"]),
    "layer missing": (without_layer, ["not complete", "lacks language_model.model.layers.1."]),
    "first layer missing": (
        lambda r: r.model(**{LAYER.format(0) + "self_attn.q_norm.weight": None}),
        ["not complete", "layers.0.self_attn.q_norm"],
    ),
    "weight missing": (lambda r: r.model(**{"vae2llm.bias": None}), ["not complete", "lacks vae2llm.bias"]),
    "latent projections missing": (lambda r: r.model(**{"llm2vae.bias": None}), ["not complete", "llm2vae"]),
    "head missing": (
        lambda r: r.model(**{"language_model.lm_head.weight": None}),
        ["not complete", "lacks lm_head.weight"],
    ),
    "embeddings missing": (
        lambda r: r.model(**{"language_model.model.embed_tokens.weight": None, "language_model.lm_head.weight": None}),
        ["Neither", "vit.safetensors", "embed_tokens", "text encoder"],
    ),
    "wrong shape": (
        lambda r: r.model(**{QUERY + ".weight": torch.zeros(64, 32)}),
        [f"has {QUERY}.weight of shape (64, 32) instead of (64, 64)"],
    ),
    "wrong number of dimensions": (lambda r: r.model(**{"llm2vae.bias": torch.zeros(())}), ["1 latent channels"]),
    "empty tensor": (lambda r: r.model(**{"llm2vae.bias": torch.zeros(0)}), ["damaged", "llm2vae.bias is empty"]),
    "integers": (
        lambda r: r.model(**{QUERY + ".weight": torch.zeros(64, 64, dtype=torch.int8)}),
        [f"stores {QUERY}.weight as I8"],
    ),
    "foreign tensor": (
        lambda r: r.model(**{"adapter.0.weight": torch.zeros(2)}),
        ["has adapter.0.weight, which Lance has not"],
    ),
    "foreign tensor in a layer": (
        lambda r: r.model(**{LAYER.format(0) + "gate.weight": torch.zeros(2)}),
        ["layers.0.gate.weight, which Lance has not"],
    ),
    "scaled fp8": (
        lambda r: r.model(**{QUERY + ".scale_weight": torch.zeros(1)}),
        ["q_proj_moe_gen.scale_weight, which Lance has not"],
    ),
    "no vision encoder": (
        without("Qwen2.5-VL-ViT"),
        ["There is no vision encoder for model.safetensors", "Qwen2.5-VL-ViT", "Load Lance"],
    ),
    "no VAE": (without(VAE), ["There is no VAE for model.safetensors", "Wan2.2_VAE.pth", "models/vae"]),
    "vision encoder of another size": (
        vision_of_another_size,
        ["vit.safetensors belongs to another model", "96", "64"],
    ),
    "vision encoder incomplete": (
        incomplete_vision,
        ["vit.safetensors is not complete", "lacks visual.blocks.2.attn.qkv.bias"],
    ),
    "model as vision encoder": (
        lambda r: {"transformer": r.root / MODEL, "vision": r.root / MODEL},
        ["model.safetensors is not Qwen2.5-VL's vision encoder"],
    ),
    "vision encoder gone": (
        lambda r: {"transformer": r.root / MODEL, "vision": r.root / "gone.safetensors"},
        ["There is no file", "gone"],
    ),
    "VAE gone": (
        lambda r: {"transformer": r.root / MODEL, "vae": r.root / "gone.pth"},
        ["There is no file", "gone.pth"],
    ),
    "pickle that is no VAE": (
        lambda r: r.vae({"epoch": 3, "optimizer": [1, 2]}, "state.pth"),
        ["state.pth", "VAE", "wan2.2_vae.safetensors"],
    ),
    "pickled list": (lambda r: r.vae([1, 2, 3], "list.pth"), ["list.pth", "VAE", "wan2.2_vae.safetensors"]),
    "LFS pointer as VAE": (
        lambda r: (
            r.raw(b"version https://git-lfs.github.com/spec/v1\n", "Wan2.2_VAE.pth")
            | {"vae": r.root / "Wan2.2_VAE.pth"}
        ),
        ["Wan2.2_VAE.pth is a Git LFS pointer"],
    ),
    "cut-off VAE": (lambda r: r.raw((r.root / VAE).read_bytes()[:-10], VAE), [f"{VAE} (", "bytes) is incomplete"]),
    "VAE of another model": (sd15_vae, ["chosen.safetensors is not Wan 2.2's VAE", "wan2.2_vae.safetensors"]),
    "VAE incomplete": (incomplete_vae, ["chosen.safetensors is not a complete VAE", "lacks decoder.9.conv.0.weight"]),
    "model as VAE": (
        lambda r: {"transformer": r.root / MODEL, "vae": r.root / MODEL},
        ["model.safetensors", "VAE", "wan2.2_vae.safetensors"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_in_one_sentence(case, repository):
    spoil, substance = WRONG[case]
    message = refusal(spoil(repository))
    assert [part for part in substance if part not in message] == [], message


NOT_JSON = [b"<html>", b"", b"\xff\xfe\x00", b"[" * 100_000, b"[]", b"3", b'{"vision_config": 3}']
NO_CONFIG = ['"num_heads": ' + n for n in ("0", "-2", "3", '"two"', "1e999", "null")] + ['"fullatt_block_indexes": 7']


def test_too_few_token_embeddings_are_said_when_a_token_has_none(repository):
    _, clip, _ = loading.load(**repository.model())
    with pytest.raises(ValueError, match="embeddings for 64 tokens.*151,665.*Download it again"):
        clip.encode_from_tokens(clip.tokenize("a red fox"))


@pytest.mark.parametrize("config", [*NOT_JSON, *(f'{{"depth": 4, {entry}}}'.encode() for entry in NO_CONFIG)])
def test_a_config_that_makes_no_sense_is_refused(config, repository):
    (repository.root / VISION).with_name("config.json").write_bytes(config)
    message = refusal({"transformer": repository.root / MODEL})
    assert "vit.safetensors" in message and "config.json" in message and "Download" in message


def test_the_config_of_another_model_is_not_believed(repository):
    """In ComfyUI's text_encoders folder a config.json may be anybody's."""
    config = {"num_heads": 64, "num_layers": 24, "fullatt_block_indexes": [0]}
    (repository.root / VISION).with_name("config.json").write_text(json.dumps(config))
    visual = loading.load(repository.root / MODEL)[1].cond_stage_model.visual
    assert visual.blocks[0].attn.num_heads == 16 and visual.fullatt_block_indexes == [7, 15, 23, 31]


class Malicious:
    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_never_runs(archive, repository):
    victim, path = repository.root / "harmed", repository.root / "Wan2.2_VAE.pth"
    content = repository.weights.vae | {"evil": Malicious(victim)}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    assert "Wan2.2_VAE.pth cannot be read as a VAE" in refusal({"transformer": repository.root / MODEL, "vae": path})
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists()  # it would have


# ---- Hostile headers -------------------------------------------------------------------------------------------------


def tensor(dtype="F32", shape=(4, 4), offsets=(0, 64)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS = {
    "offsets beyond the file": {"a": tensor(shape=(4, 400), offsets=(0, 6400))},
    "negative offsets": {"a": tensor(offsets=(-64, 0))},
    "offsets the wrong way round": {"a": tensor(offsets=(64, 0))},
    "overlapping": {"a": tensor(), "b": tensor()},
    "gap": {"a": tensor(shape=(2, 2), offsets=(0, 16)), "b": tensor(shape=(2, 2), offsets=(48, 64))},
    "shape against offsets": {"a": tensor(shape=(4, 5))},
    "negative shape": {"a": tensor(shape=(-4, -4))},
    "overflowing shape": {"a": tensor(shape=(2**40, 2**40))},
    "huge empty shape": {"a": tensor(shape=(2**62, 0), offsets=(0, 0)), "b": tensor()},
    "fractional shape": {"a": tensor(shape=(4.5, 4))},
    "shape of text": {"a": tensor(shape="44")},
    "unknown dtype": {"a": tensor(dtype="F99")},
    "no dtype": {"a": {"shape": (4, 4), "data_offsets": (0, 64)}},
    "one offset": {"a": tensor(offsets=(64,))},
    "tensor is a number": {"a": 3},
    "metadata is a list": {"__metadata__": [1, 2], "a": tensor()},
    "metadata is a number": {"__metadata__": 3, "a": tensor()},
    "metadata of numbers": {"__metadata__": {"vision_config": 3}, "a": tensor()},
    "not an object": ["a"],
    "not UTF-8": b'{"\xff\xfe": 3}',
    "not JSON": b'{"a": ',
    "deeply nested": b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "no length": b"",
}


def raw_safetensors(header: object, data: bytes = b"\0" * 64) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("place", [MODEL, VISION, VAE])
def test_a_hostile_header_is_refused(case, place, repository):
    message = refusal(repository.raw(raw_safetensors(HEADERS[case]), place))
    assert Path(place).name in message and "Download it again" in message


@pytest.mark.parametrize("start", [b"<", b" <", b"\n\t"])
def test_a_header_length_that_reads_like_text_is_a_number(start, repository):
    content = (repository.root / MODEL).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    wanted = next(n for n in range(length, length + 2**16) if n.to_bytes(8, "little").startswith(start))
    header = content[8 : 8 + length].ljust(wanted)
    check_weights(loading.load(**repository.raw(raw_safetensors(header, content[8 + length :]))), repository.weights)


@pytest.mark.parametrize("length", [65, 2**27, 2**40, 2**63, 2**64 - 1])
def test_a_header_length_is_not_believed(length, repository):
    before = resident()
    message = refusal(repository.raw(struct.pack("<Q", length) + b'{"a": 3}' + b" " * 50))
    assert "not a safetensors file" in message and resident() - before < 0.1e9


ODD_NUMBERS = [None, True, -1, 0, 1, 3, 2**31, 2**53, 2**63, 2**64, 1e300]
ODD_VALUES = [*ODD_NUMBERS, "", "F64", "I8", [], [0], [-1], [1, 1], [2**62, 4], {}, [[[]]]]


def mutate_entries(raw: bytes, chance: random.Random) -> bytes:
    """One field of one tensor becomes something odd, or the tensor itself goes, moves or gets another name."""
    entries = json.loads(raw)
    name = chance.choice(list(entries))
    kind = chance.randrange(6)
    if kind == 0:
        del entries[name]
    elif kind == 1:
        renamed = name[: chance.randrange(len(name))] + chance.choice(["", "x", ".weight", "9999999999"])
        entries[renamed] = entries.pop(name)
    elif kind == 2:
        entries[name] = chance.choice(ODD_VALUES)
    elif kind == 3:
        entries[name]["shape"] = entries[name]["shape"][::-1] + [1]
    elif kind == 4:
        entries[name]["data_offsets"][chance.randrange(2)] += chance.choice([-4, 4, 2**40])
    else:
        entries[name][chance.choice(["dtype", "shape", "data_offsets"])] = chance.choice(ODD_VALUES)
    return json.dumps(entries).encode()


def mutate_bytes(raw: bytes, chance: random.Random) -> bytes:
    """A few bytes are overwritten, go, or come in between."""
    out = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(out))
        out[start : start + chance.randrange(3)] = bytes(chance.randrange(256) for _ in range(chance.randrange(3)))
    return bytes(out)


@pytest.mark.parametrize("mutate", [mutate_entries, mutate_bytes], ids=["entries", "bytes"])
@pytest.mark.parametrize("place", [MODEL, VISION])
def test_a_mutated_header_is_refused_or_harmless(place, mutate, repository):
    loaded = loading.load(repository.root / MODEL)  # in use, so what is not mutated is not built anew every time
    content = (repository.root / place).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    chance, refused = random.Random(f"{place} {mutate.__name__}"), 0
    for _ in range(150):
        repository.raw(raw_safetensors(mutate(content[8 : 8 + length], chance), content[8 + length :]), place)
        try:
            assert loading.load(repository.root / MODEL)[2] is loaded[2]
        except CheckpointError as error:
            assert Path(place).name in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100


# ---- The node --------------------------------------------------------------------------------------------------------


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
