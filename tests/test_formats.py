"""Quantised files load and sample through ComfyUI's own operations."""

import json

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from comfyui_lance.dev.host import tiny_checkpoint
from comfyui_lance.dev.host.number_formats import native, quantise
from comfyui_lance.lance_model import loading, quantised
from comfyui_lance.lance_model.checkpoint import CheckpointError
from support.checkpoints import save
from support.formats import FORMATS, ROTATED, TENSORS, beside, fp4, in_bf16, int4, old_fp8, velocity
from support.sampling import relative

QUERY = "language_model.model.layers.1.self_attn.q_proj_moe_gen"


@pytest.fixture(scope="module")
def weights(tiny) -> TENSORS:
    return in_bf16(tiny)


def note(settings: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


@pytest.fixture(scope="module")
def exact(tiny, weights, tmp_path_factory) -> torch.Tensor:
    """The first velocity of the bf16 file."""
    path = save(weights, tmp_path_factory.mktemp("bf16") / "model.safetensors")
    return velocity(loading.load(path, **beside(tiny)))


@pytest.mark.parametrize("format", FORMATS)
def test_a_quantised_file_samples_near_the_plain_one(format, tiny, weights, exact, tmp_path):
    make, stored, most = FORMATS[format]
    loaded = loading.load(make(weights, tmp_path / "model.safetensors"), **beside(tiny))
    modules = dict(loaded[0].model.diffusion_model.named_modules())
    quantised = {name: m for name, m in modules.items() if isinstance(getattr(m, "weight", None), QuantizedTensor)}
    assert len(quantised) == (tiny_checkpoint.LAYERS * 2 * (4 + 3) if stored else 0)
    assert {module.quant_format for module in quantised.values()} == ({stored} if stored else set())
    assert 1e-3 < relative(velocity(loaded), exact) < most


def test_a_file_may_mix_formats(tiny, weights, exact, tmp_path):
    """Integers of four bits, whose rotation fits only some layers, beside NVFP4 and bf16."""

    def mixed(layer: str, weight: torch.Tensor) -> TENSORS:
        if "self_attn" in layer:
            return {f"{layer}.weight": weight}
        return (
            native("convrot_w4a4", convrot_groupsize=64)(layer, weight) if weight.shape[1] == 64 else fp4(layer, weight)
        )

    loaded = loading.load(save(quantise(weights, mixed), tmp_path / "model.safetensors"), **beside(tiny))
    layer = loaded[0].model.diffusion_model.get_submodule("language_model.model.layers.0")
    assert not isinstance(layer.self_attn.q_proj.weight, QuantizedTensor)
    assert (layer.mlp.up_proj.quant_format, layer.mlp.down_proj.quant_format) == ("convrot_w4a4", "nvfp4")
    assert 1e-3 < relative(velocity(loaded), exact) < 0.5


@pytest.mark.parametrize("stored", [native("int8_tensorwise", per_channel=True), ROTATED])
def test_a_lora_on_integers_scaled_by_rows_is_rounded_to_such_again(stored, tiny, weights, tmp_path):
    path = save(quantise(weights, stored), tmp_path / "model.safetensors")
    model = loading.load(path, **beside(tiny))[0]
    before = model.model.diffusion_model.get_submodule(QUERY).weight.dequantize().float()
    patched = model.clone()
    patched.add_patches({f"diffusion_model.{QUERY}.weight": ("diff", (torch.full((64, 64), 0.1),))}, 1.0)
    comfy.model_management.load_models_gpu([patched], force_patch_weights=True)
    after = patched.model.diffusion_model.get_submodule(QUERY).weight
    assert isinstance(after, QuantizedTensor) and after._params.scale.shape == (64, 1)
    assert (after.dequantize().float() - before - 0.1).abs().max() < 0.01
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("how", [int4, fp4])
def test_packed_weights_are_unpacked_as_they_were_packed(how, tiny, weights, tmp_path):
    loaded = loading.load(save(quantise(weights, how), tmp_path / "model.safetensors"), **beside(tiny))
    weight = loaded[0].model.diffusion_model.get_submodule(QUERY).weight
    weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
    assert relative(weight.float(), weights[QUERY + ".weight"].float()) < 0.13


def test_packed_weights_may_become_fp8_in_memory(tiny, weights, tmp_path):
    path = save(quantise(weights, int4), tmp_path / "model.safetensors")
    model = loading.load(path, **beside(tiny), weight_dtype="fp8_e4m3fn")[0]
    assert model.model.diffusion_model.get_submodule(QUERY).weight.dtype == torch.float8_e4m3fn


def test_a_lora_applies_to_quantised_weights_and_leaves_again(tiny, weights, tmp_path):
    loaded = loading.load(
        save(quantise(weights, native("float8_e4m3fn")), tmp_path / "model.safetensors"), **beside(tiny)
    )
    plain = velocity(loaded)
    patched = loaded[0].clone()
    patch = {f"diffusion_model.{QUERY}.weight": ("diff", (torch.ones(64, 64),))}
    assert len(patched.add_patches(patch, 0.5)) == 1
    assert relative(velocity((patched, *loaded[1:])), plain) > 0.01
    assert torch.equal(velocity(loaded), plain)


def test_a_quantised_model_is_built_again_for_another_device(tiny, weights, tmp_path):
    path = save(quantise(weights, old_fp8) | {"scaled_fp8": torch.zeros(1)}, tmp_path / "model.safetensors")
    model = loading.load(path, **beside(tiny))[0]
    build, arguments = model.cached_patcher_init
    again = build(*arguments, disable_dynamic=True)
    assert isinstance(again.model.diffusion_model.get_submodule(QUERY).weight, QuantizedTensor)


def test_scales_of_inputs_in_an_older_file_are_taken_as_comfyui_takes_them(tiny, weights, tmp_path):
    """A scale of 1 says that there is none."""
    scales = {QUERY: torch.tensor(1.0), QUERY.replace("q_proj", "k_proj"): torch.tensor([0.5])}
    older = quantise(weights, old_fp8) | {f"{layer}.scale_input": scale for layer, scale in scales.items()}
    path = save(older | {"scaled_fp8": torch.zeros(1)}, tmp_path / "model.safetensors")
    transformer = loading.load(path, **beside(tiny))[0].model.diffusion_model
    assert [getattr(transformer.get_submodule(layer), "input_scale", None) for layer in scales] == [None, 0.5]


def test_an_older_file_in_e5m2_is_read_as_that(tiny, weights, exact, tmp_path):
    older = {
        name: weight.to(torch.float8_e5m2) if weight.dtype == torch.float8_e4m3fn else weight
        for name, weight in quantise(weights, old_fp8).items()
    }
    loaded = loading.load(save(older | {"scaled_fp8": torch.zeros(2)}, tmp_path / "model.safetensors"), **beside(tiny))
    assert loaded[0].model.diffusion_model.get_submodule(QUERY).quant_format == "float8_e5m2"
    assert relative(velocity(loaded), exact) < 0.16


def test_a_quantised_model_saved_by_core_loads_again(tiny, weights, tmp_path):
    path = save(quantise(weights, native("float8_e4m3fn")), tmp_path / "model.safetensors")
    model, clip, vae = loading.load(path, **beside(tiny))
    metadata = {"vision_config": json.dumps(tiny_checkpoint.VIT_CONFIG)}
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), model, clip, vae, metadata=metadata)
    again = loading.load(tmp_path / "saved.safetensors")
    assert isinstance(again[0].model.diffusion_model.get_submodule(QUERY).weight, QuantizedTensor)
    assert relative(velocity(again), velocity((model, clip, vae))) < 1e-5


def test_a_quantised_model_answers(tiny, weights, tmp_path):
    path = save(quantise(weights, native("nvfp4")), tmp_path / "model.safetensors")
    clip = loading.load(path, **beside(tiny))[1]
    assert len(clip.generate(clip.tokenize("What is red?"), do_sample=False, max_length=3)) <= 3


def rotated(**settings) -> TENSORS:
    """A layer of integers, turned as it says."""
    described = {"format": "int8_tensorwise"} | ({} if "params" in settings else {"convrot": True}) | settings
    weight = torch.zeros(64, 64, dtype=torch.int8)
    return {
        f"{QUERY}.weight": weight,
        f"{QUERY}.weight_scale": torch.ones(64, 1),
        f"{QUERY}.comfy_quant": note(described),
    }


WRONG = {
    "unknown format": ({f"{QUERY}.comfy_quant": note({"format": "q4_k"})}, ["format", "q4_k", "NVFP4"]),
    "no format": ({f"{QUERY}.comfy_quant": note({})}, ["format", "None"]),
    "no JSON": ({f"{QUERY}.comfy_quant": torch.zeros(4, dtype=torch.uint8)}, ["invalid JSON"]),
    "a format of newer hosts": (
        {f"{QUERY}.comfy_quant": note({"format": "of_tomorrow"})},
        [QUERY, "of_tomorrow", "does not know yet", "Update ComfyUI"],
    ),
    "a scale that fp8 has not": (
        {f"{QUERY}.pre_quant_scale": torch.ones(64)},
        [f"has {QUERY}.pre_quant_scale, which Lance has not"],
    ),
    "turns of no size": (rotated(convrot_groupsize=48), [QUERY, "do not fit its 64 columns", "48"]),
    "turns wider than the columns": (rotated(convrot_groupsize=256), ["do not fit its 64 columns"]),
    "turns by default": (rotated(), ["do not fit its 64 columns"]),
    "turns by a word": (rotated(params={"convrot": True, "convrot_groupsize": "all"}), ["do not fit", "all"]),
    "integers by blocks": (rotated(convrot_groupsize=16) | {f"{QUERY}.weight_scale": torch.ones(4, 4)}, ["(4, 4)"]),
    "a list for a format": ({f"{QUERY}.comfy_quant": note({"format": ["nvfp4"]})}, ["format", "['nvfp4']"]),
    "a note in numbers": ({f"{QUERY}.comfy_quant": torch.zeros(4)}, ["comfy_quant, which Lance has not"]),
    "no scale": ({f"{QUERY}.weight_scale": None}, [f"lacks {QUERY}.weight_scale"]),
    "scales a row": ({f"{QUERY}.weight_scale": torch.ones(64, 1)}, ["weight_scale of shape (64, 1) instead of ()"]),
    "a tensor too many": ({f"{QUERY}.weight_zero": torch.ones(1)}, ["weight_zero, which Lance has not"]),
    "a norm": (
        {"language_model.model.norm.comfy_quant": note({"format": "nvfp4"})},
        ["norm.comfy_quant, which Lance has not"],
    ),
    "packed, no zeros": (
        {f"{QUERY}.{name}": None for name in ("weight", "weight_scale", "comfy_quant")}
        | {f"{QUERY}.qweight": torch.zeros(64, 32, dtype=torch.uint8), f"{QUERY}.scales": torch.ones(64, 2)},
        [f"lacks {QUERY}.zeros"],
    ),
    "packed, one scale": (
        {f"{QUERY}.{name}": None for name in ("weight", "weight_scale", "comfy_quant")}
        | {f"{QUERY}.qweight": torch.zeros(64, 32, dtype=torch.uint8), f"{QUERY}.scales": torch.ones(())}
        | {f"{QUERY}.zeros": torch.zeros((), dtype=torch.uint8)},
        [f"has {QUERY}.scales of shape ()"],
    ),
    "packed in 32 bits": (
        {f"{QUERY}.{name}": None for name in ("weight", "weight_scale", "comfy_quant")}
        | {f"{QUERY}.qweight": torch.zeros(64, 8, dtype=torch.int32), f"{QUERY}.scales": torch.ones(64, 2)}
        | {f"{QUERY}.zeros": torch.zeros(64, 2, dtype=torch.uint8)},
        ["qweight of shape (64, 8) instead of (64, 32)"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_quantisation_that_does_not_fit_is_refused(case, tiny, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(quantised, "FORMATS", quantised.FORMATS | {"of_tomorrow"})
    changes, substance = WRONG[case]
    changed = quantise(weights, native("float8_e4m3fn")) | changes
    path = save({name: value for name, value in changed.items() if value is not None}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        loading.load(path, **beside(tiny))
    assert [part for part in substance if part not in str(refused.value)] == [], str(refused.value)
