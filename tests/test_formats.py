"""Quantised files load and sample through ComfyUI's own operations; `scripts/convert.py` makes single files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from comfyui_lance.dev.host import tiny_checkpoint
from comfyui_lance.dev.host.number_formats import is_projection, native, quantise
from comfyui_lance.lance_model import loading, quantised
from comfyui_lance.lance_model.checkpoint import CheckpointError, Part, read_header
from comfyui_lance.scripts import convert
from safetensors.torch import load_file
from support.checkpoints import MODEL, VAE, VISION, save
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


# ---- scripts/convert.py ----------------------------------------------------------------------------------------------


def quiet(*_) -> None:
    pass


# Format in the file, and how far the first velocity may be from that of bf16.
CONVERTED = {
    "fp8": ("float8_e4m3fn", 0.08),
    "mxfp8": ("mxfp8", 0.08),
    "nvfp4": ("nvfp4", 0.4),
    "int8": ("int8_tensorwise", 0.03),
}


def formats_of(model) -> dict[str, str]:
    modules = model.model.diffusion_model.named_modules()
    return {name: m.quant_format for name, m in modules if isinstance(getattr(m, "weight", None), QuantizedTensor)}


@pytest.fixture(scope="module")
def small(tiny, weights, tmp_path_factory) -> Path:
    """The official layout in bf16."""
    root = tmp_path_factory.mktemp("small")
    for name in (MODEL, VISION):
        (root / name).parent.mkdir()
    save(weights, root / MODEL)
    for name in (VISION, "Qwen2.5-VL-ViT/config.json", VAE):
        (root / name).symlink_to(tiny / name)
    return root


@pytest.mark.parametrize("dtype", [None, *CONVERTED])
def test_a_converted_checkpoint_is_the_model(dtype, small, tiny, weights, exact, tmp_path):
    out = tmp_path / "lance.safetensors"
    convert.convert(small / MODEL, out, dtype or "bf16", None, None, quiet)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    loaded = loading.load(out)
    found = velocity(loaded)
    if dtype is None:
        model = loaded[0].model.diffusion_model.state_dict()
        assert all(torch.equal(model[name], weights[name]) for name in model)
        assert relative(found, exact) < 0.02  # the vision encoder is in bf16 now, the text alike
    else:
        format, most = CONVERTED[dtype]
        assert formats_of(loaded[0]) == {
            name.removesuffix(".weight"): format for name in filter(is_projection, weights)
        }
        assert 1e-3 < relative(found, exact) < most
    vision = load_file(tiny / VISION)
    visual = loaded[1].cond_stage_model.visual.state_dict()
    assert all(torch.equal(visual[name], vision[name].to(torch.bfloat16)) for name in visual)
    assert loaded[1].cond_stage_model.visual.blocks[0].attn.num_heads == tiny_checkpoint.VIT_CONFIG["num_heads"]
    assert loaded[2].latent_channels == 48


KEPT = {
    "understanding": lambda name: "_moe_gen" not in name,
    "generation": lambda name: "_moe_gen" in name,
    "ends": lambda name: any(f".layers.{layer}." in name for layer in (0, tiny_checkpoint.LAYERS - 1)),
    "generation ends": lambda name: KEPT["generation"](name) or KEPT["ends"](name),
}


@pytest.mark.parametrize("keep", KEPT)
def test_what_is_to_be_kept_stays_as_it_was(keep, weights, small, tmp_path):
    out = tmp_path / "lance.safetensors"
    convert.convert(small / MODEL, out, "nvfp4", None, None, quiet, keep=keep.split())
    transformer = loading.load(out)[0]
    kept = {name.removesuffix(".weight") for name in filter(is_projection, weights) if KEPT[keep](name)}
    assert formats_of(transformer).keys() == {n.removesuffix(".weight") for n in filter(is_projection, weights)} - kept
    held = transformer.model.diffusion_model.state_dict()
    assert all(torch.equal(held[f"{layer}.weight"], weights[f"{layer}.weight"].to(torch.float32)) for layer in kept)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", CONVERTED)
def test_pieces_of_a_weight_are_stored_as_the_whole_is(dtype, tmp_path, monkeypatch):
    """As ComfyUI's own quantisation of the whole weight would store it."""
    weight = torch.randn(416, 64, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 416)[:, None]
    part = Part(read_header(save({"x.weight": weight}, tmp_path / "x.safetensors")))
    monkeypatch.setattr(convert, "CHUNK", 2 * convert.TILE * 64)
    made, counts = {}, {}
    for tensor in convert.quantised("x", part, "x.weight", dtype):
        read = list(tensor.read())
        made[tensor.name], counts[tensor.name] = torch.cat(read) if tensor.shape else read[0], len(read)
        assert (made[tensor.name].dtype, made[tensor.name].shape) == (tensor.dtype, tensor.shape)
    assert counts["x.weight"] == 2
    options = {"per_channel": True, "convrot": True, "convrot_groupsize": 64} if dtype == "int8" else {}
    expected = native(CONVERTED[dtype][0], **options)("x", weight)
    expected.pop("x.comfy_quant"), made.pop("x.comfy_quant")
    expected, made = ({name: bytes_of(w) for name, w in tensors.items()} for tensors in (expected, made))
    assert expected == made


def test_without_comfy_kitchen_fp8_is_made_and_the_others_are_refused(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy_kitchen.tensor", None)
    convert.convert(small / MODEL, tmp_path / "fp8.safetensors", "fp8", None, None, quiet)
    with pytest.raises(convert.CheckpointError, match="this Python lacks"):
        convert.convert(small / MODEL, tmp_path / "int8.safetensors", "int8", None, None, quiet)


def test_the_vae_may_be_the_original_pickle(small, tiny, tmp_path):
    torch.save(load_file(tiny / VAE), tmp_path / "Wan2.2_VAE.pth")
    out = tmp_path / "lance.safetensors"
    convert.convert(small / MODEL, out, "bf16", None, tmp_path / "Wan2.2_VAE.pth", quiet)
    vae = {key.removeprefix("vae."): value for key, value in load_file(out).items() if key.startswith("vae.")}
    assert vae.keys() == load_file(tiny / VAE).keys()
    assert all(torch.equal(vae[key], value) for key, value in load_file(tiny / VAE).items())


def test_large_tensors_pass_in_pieces(small, tmp_path, monkeypatch):
    convert.convert(small / MODEL, tmp_path / "whole.safetensors", "fp8", None, None, quiet)
    monkeypatch.setattr(convert, "CHUNK", 50_000)
    convert.convert(small / MODEL, tmp_path / "pieces.safetensors", "fp8", None, None, quiet)
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "pieces.safetensors").read_bytes()


REFUSED = {
    "no model": (lambda s, t: (s / VISION, t / "out.safetensors"), "not a Lance transformer"),
    "no file": (lambda s, t: (s / "gone.safetensors", t / "out.safetensors"), "There is no file"),
    "no VAE": (lambda s, t: (s / MODEL, t / "out.safetensors", s / VISION, s / VISION), "not Wan 2.2's VAE"),
    "another suffix": (lambda s, t: (s / MODEL, t / "out.ckpt"), "must end in .safetensors"),
    "no folder": (lambda s, t: (s / MODEL, t / "gone" / "out.safetensors"), "There is no folder"),
    "there already": (lambda s, t: (s / MODEL, s / MODEL), "is there already"),
    "quantised already": (
        lambda s, t: (
            save(quantise(load_file(s / MODEL), native("float8_e4m3fn")), t / "fp8.safetensors"),
            t / "out.safetensors",
            s / VISION,
            s / VAE,
        ),
        "Convert from the official",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_and_leaves_nothing(case, small, tmp_path):
    arguments, substance = REFUSED[case]
    model, out, vision, vae = (*arguments(small, tmp_path), None, None)[:4]
    before = set(tmp_path.iterdir())
    with pytest.raises(convert.CheckpointError, match=substance):
        convert.convert(model, out, "bf16", vision, vae, quiet)
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "fp8.safetensors"}


WITH_KEEP = {
    "beside bf16": ("bf16", ["ends"], "Give that too"),
    "of both experts": ("int8", ["understanding", "generation"], "leaves nothing that could be int8"),
}


@pytest.mark.parametrize("case", WITH_KEEP)
def test_a_keep_that_changes_nothing_is_refused(case, small, tmp_path):
    dtype, keep, substance = WITH_KEEP[case]
    with pytest.raises(convert.CheckpointError, match=substance):
        convert.convert(small / MODEL, tmp_path / "out.safetensors", dtype, None, None, quiet, keep=keep)


def test_columns_that_fill_no_block_are_refused(tmp_path):
    part = Part(read_header(save({"x.weight": torch.zeros(32, 24)}, tmp_path / "x.safetensors")))
    with pytest.raises(convert.CheckpointError, match="x is 32 × 24, which nvfp4 cannot store"):
        convert.quantised("x", part, "x.weight", "nvfp4")


def test_an_interrupted_conversion_leaves_nothing(tiny, tmp_path):
    """Ctrl-C while the file is being written."""
    script = Path(convert.__file__)
    slow = f"""
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, {str(script.parent)!r})
import convert
convert.convert.__defaults__ = (lambda *_: (print("writing", flush=True), time.sleep(0.2)),)
sys.argv = ["convert.py", {str(tiny / MODEL)!r}, {str(tmp_path / "out.safetensors")!r}]
convert.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout.readline() == "writing\n"
    assert (tmp_path / "out.safetensors.partial").exists()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Stopped" in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
