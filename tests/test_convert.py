"""scripts/convert.py makes single files that load, bf16 and quantised, and refuses what it cannot convert."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from comfyui_lance.dev.host import tiny_checkpoint
from comfyui_lance.dev.host.number_formats import is_projection, native, quantise
from comfyui_lance.lance_model import loading
from comfyui_lance.lance_model.checkpoint import Part, read_header
from comfyui_lance.scripts import convert
from safetensors.torch import load_file
from support.checkpoints import MODEL, VAE, VISION, save
from support.formats import TENSORS, beside, in_bf16, velocity
from support.sampling import relative


@pytest.fixture(scope="module")
def weights(tiny) -> TENSORS:
    return in_bf16(tiny)


@pytest.fixture(scope="module")
def exact(tiny, small) -> torch.Tensor:
    """The first velocity of the bf16 file."""
    return velocity(loading.load(small / MODEL, **beside(tiny)))


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
