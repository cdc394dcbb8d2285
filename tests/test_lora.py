"""LoRAs: ComfyUI's own loaders apply, schedule and train them; those of other makers are renamed once."""

import json
import logging
from pathlib import Path
from unittest import mock

import comfy.hooks
import comfy.sd
import pytest
import torch
from comfyui_lance.lance_model import language
from comfyui_lance.nodes.lora import LoadLanceLora
from comfyui_lance.scripts import convert
from safetensors.torch import load_file, save_file
from support.sampling import Probe, relative, sample, schedule

LAYER = "language_model.model.layers.{}.self_attn."
RANK = 4
SIDES = {"lora_A.weight": (RANK, 64), "lora_B.weight": (64, RANK)}


def lora(layers: list[str], prefix: str) -> dict[str, torch.Tensor]:
    """Weights that are the same whatever the prefix."""
    generator = torch.Generator().manual_seed(3)
    return {
        f"{prefix}{layer}.{side}": 0.1 * torch.randn(shape, generator=generator)
        for layer in layers
        for side, shape in SIDES.items()
    }


GENERATION = [LAYER.format(i) + "q_proj_moe_gen" for i in range(3)]


@pytest.fixture()
def pair(lance):
    return language.encode_pair(lance[1], "A red fox sleeps in the snow.")


def run(model, pair) -> torch.Tensor:
    noise = torch.randn(1, 48, 1, 4, 6, generator=torch.Generator().manual_seed(1))
    return sample(model, *pair, noise, schedule(4, 3.5))


def applied(lance, weights: dict[str, torch.Tensor], strength: float = 1.0):
    """What core's LoRA loader gives."""
    return comfy.sd.load_lora_for_models(*lance[:2], weights, strength, strength)[0]


def test_a_lora_of_the_generation_expert_counts_by_its_strength(lance, pair):
    plain, weights = run(lance[0], pair), lora(GENERATION, "diffusion_model.")
    once, half = (relative(run(applied(lance, weights, s), pair), plain) for s in (1.0, 0.5))
    assert once > half > 1e-4
    assert torch.equal(run(applied(lance, weights, 0.0), pair), plain)
    there_and_back = applied((applied(lance, weights), lance[1]), weights, -1.0)
    assert relative(run(there_and_back, pair), plain) < 1e-5
    assert torch.equal(run(lance[0], pair), plain)


def test_a_lora_may_be_scheduled_by_hooks(lance, pair):
    plain, whole = run(lance[0], pair), run(applied(lance, lora(GENERATION, "diffusion_model.")), pair)

    def hooked(*strengths: tuple[float, float]) -> torch.Tensor:
        hooks = comfy.hooks.create_hook_lora(lora(GENERATION, "diffusion_model."), 1.0, 1.0)
        frames = comfy.hooks.HookKeyframeGroup()
        for strength, start in strengths:
            frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
        hooks.set_keyframes_on_hooks(frames)
        return run(lance[0], [comfy.hooks.set_hooks_for_conditioning(c, hooks) for c in pair])

    assert relative(hooked((1.0, 0.0)), whole) < 1e-5
    assert relative(hooked((0.0, 0.0)), plain) < 1e-5
    ended = hooked((1.0, 0.0), (0.0, 0.5))
    assert relative(ended, plain) > 1e-4 and relative(ended, whole) > 1e-4


# ---- LoRAs of other makers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["base_model.model.", "base_model.model.diffusion_model.", "transformer.", "", "diffusion_model."]
)
def test_a_renamed_lora_is_the_same_lora(prefix, lance, pair, tmp_path, caplog):
    save_file(lora(GENERATION, prefix), tmp_path / "adapter_model.safetensors")
    convert.convert(tmp_path / "adapter_model.safetensors", tmp_path / "out.safetensors", "bf16", None, None, silent)
    renamed = load_file(tmp_path / "out.safetensors")
    with caplog.at_level(logging.WARNING):
        model = applied(lance, renamed)
    assert "not loaded" not in caplog.text.lower()
    assert torch.equal(run(model, pair), run(applied(lance, lora(GENERATION, "diffusion_model.")), pair))


def silent(*_) -> None:
    pass


def renamed(weights: dict[str, torch.Tensor], folder: Path, config: dict | None = None) -> dict[str, torch.Tensor]:
    save_file(weights, folder / "adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    convert.convert(folder / "adapter_model.safetensors", folder / "out.safetensors", "bf16", None, None, silent)
    return load_file(folder / "out.safetensors")


def test_names_of_every_wrapping_are_understood(tmp_path):
    wrapped = {
        "base_model.model.model.layers.0.mlp_moe_gen.up_proj.lora_A.default.weight": "language_model.model.layers.0."
        "mlp_moe_gen.up_proj.lora_A.weight",
        "base_model.model.layers.1.self_attn.o_proj.lora_B.weight": "language_model.model.layers.1.self_attn.o_proj."
        "lora_B.weight",
        "vae2llm.lora_up.weight": "vae2llm.lora_up.weight",
        "vae2llm.alpha": "vae2llm.alpha",
    }
    found = renamed({name: torch.ones(2, 2) for name in wrapped}, tmp_path)
    assert found.keys() == {f"diffusion_model.{name}" for name in wrapped.values()}


def test_a_lora_of_head_and_vision_encoder_goes_to_clip(lance, tmp_path, caplog):
    layers = ["language_model.lm_head", "vit_model.blocks.0.attn.proj"]
    weights = {f"base_model.model.{layer}.lora_A.weight": torch.ones(RANK, 64) for layer in layers}
    rows = {"language_model.lm_head": 151936, "vit_model.blocks.0.attn.proj": 64}
    weights |= {f"base_model.model.{layer}.lora_B.weight": torch.ones(rows[layer], RANK) for layer in layers}
    with caplog.at_level(logging.WARNING):
        _, clip = comfy.sd.load_lora_for_models(*lance[:2], renamed(weights, tmp_path), 1.0, 1.0)
    assert "not loaded" not in caplog.text.lower()
    assert clip.patcher.patches.keys() == {"lm_head.weight", "visual.blocks.0.attn.proj.weight"}


@pytest.mark.parametrize(
    ("config", "strength"),
    [
        (None, 1.0),
        ({"lora_alpha": 8, "r": RANK}, 2.0),
        ({"lora_alpha": 8, "r": RANK, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "r": RANK, "alpha_pattern": {"q_proj_moe_gen": 2}}, 0.5),
    ],
)
def test_the_strength_of_pefts_config_counts(config, strength, lance, tmp_path):
    model = applied(lance, renamed(lora(GENERATION[:1], "base_model.model."), tmp_path, config))
    expected = applied(lance, lora(GENERATION[:1], "diffusion_model."), strength)
    key = f"diffusion_model.{GENERATION[0]}.weight"
    with_lora = [m.patch_weight_to_device(key, return_weight=True) for m in (model, expected)]
    assert torch.allclose(*with_lora, atol=1e-6)
    assert not torch.allclose(with_lora[0], lance[0].model.state_dict()[key])


@pytest.mark.parametrize(
    ("key", "config", "substance"),
    [
        ("base_model.model.unet.down.lora_A.weight", {}, "changes base_model.model.unet.down, which Lance has not"),
        (f"{GENERATION[0]}.lora_magnitude_vector", {}, "lora_magnitude_vector"),
        (f"{GENERATION[0]}.lora_A.weight", {"lora_alpha": "much"}, "adapter_config.json is not PEFT's"),
        (f"{GENERATION[0]}.lora_A.weight", [], "adapter_config.json is not PEFT's"),
    ],
)
def test_what_is_no_lora_of_lance_is_refused(key, config, substance, tmp_path):
    weights = lora(GENERATION[1:], "base_model.model.") | {key: torch.ones(2, 2)}
    with pytest.raises(convert.CheckpointError, match=substance.replace(".", r"\.")):
        renamed(weights, tmp_path, config)
    assert not list(tmp_path.glob("out*"))


def test_a_lora_is_not_made_smaller_in_silence(tmp_path):
    save_file(lora(GENERATION, ""), tmp_path / "lora.safetensors")
    with pytest.raises(convert.CheckpointError, match="a LoRA, which is only renamed. Leave the options out"):
        convert.convert(tmp_path / "lora.safetensors", tmp_path / "out.safetensors", "fp8", None, None, silent)


# ---- Load Lance LoRA -------------------------------------------------------------------------------------------------


@pytest.fixture()
def loras(tmp_path):
    """ComfyUI's folder of LoRAs."""
    import folder_paths

    with mock.patch.dict(folder_paths.folder_names_and_paths, {"loras": ([str(tmp_path)], {".safetensors"})}):
        folder_paths.filename_list_cache.pop("loras", None)
        yield tmp_path


def loaded(lance, name: str, strength: float = 1.0, strength_clip: float = 1.0, clip: bool = True):
    clip = lance[1] if clip else None
    return LoadLanceLora.execute(lance[0], name, strength, strength_clip, clip).args


KOHYA = "lora_unet_" + LAYER.format(0).replace(".", "_") + "q_proj_moe_gen"


@pytest.mark.parametrize(
    "prefix", ["base_model.model.", "base_model.model.diffusion_model.", "transformer.", "", "diffusion_model."]
)
def test_the_node_takes_every_naming(prefix, lance, pair, loras, caplog):
    save_file(lora(GENERATION, prefix), loras / "any.safetensors")
    with caplog.at_level(logging.WARNING):
        model, clip = loaded(lance, "any.safetensors")
    assert "not loaded" not in caplog.text.lower() and not clip.patcher.patches
    assert torch.equal(run(model, pair), run(applied(lance, lora(GENERATION, "diffusion_model.")), pair))


def test_the_node_knows_what_cores_loader_knows(lance, loras, caplog):
    """Kohya's names, LoKr, and a difference of weights."""
    bare = f"diffusion_model.{GENERATION[1]}"
    weights = {f"{KOHYA}.lora_down.weight": torch.ones(RANK, 64), f"{KOHYA}.lora_up.weight": torch.ones(64, RANK)}
    weights |= {f"{KOHYA}.alpha": torch.tensor(2.0), f"diffusion_model.{GENERATION[2]}.diff": torch.ones(64, 64)}
    weights |= {f"{bare}.lokr_w1": torch.ones(8, 8), f"{bare}.lokr_w2": torch.ones(8, 8)}
    save_file(weights, loras / "known.safetensors")
    with caplog.at_level(logging.WARNING):
        model, _ = loaded(lance, "known.safetensors", clip=False)
    assert "not loaded" not in caplog.text.lower()
    assert model.patches.keys() == {f"diffusion_model.{layer}.weight" for layer in GENERATION}


def test_both_strengths_and_pefts_count(lance, loras):
    weights = lora(GENERATION[:1], "base_model.model.")
    for side, shape in {"lora_A": (RANK, 64), "lora_B": (64, RANK)}.items():
        weights[f"base_model.model.vit_model.blocks.0.attn.proj.{side}.weight"] = torch.ones(shape)
    (loras / "peft").mkdir()
    save_file(weights, loras / "peft" / "adapter_model.safetensors")
    (loras / "peft" / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": RANK}))
    model, clip = loaded(lance, "peft/adapter_model.safetensors", 0.5, 0.25)
    for patcher, key, strength in (
        (model, f"diffusion_model.{GENERATION[0]}.weight", 0.5),
        (clip.patcher, "visual.blocks.0.attn.proj.weight", 0.25),
    ):
        ((given, adapter, *_),) = patcher.patches[key]
        assert given == strength and adapter.weights[2] == 8.0
    assert not lance[0].patches and not lance[1].patcher.patches
    with pytest.raises(ValueError, match="also changes CLIP. Connect the CLIP"):
        loaded(lance, "peft/adapter_model.safetensors", clip=False)
    assert loaded(lance, "peft/adapter_model.safetensors", strength_clip=0.0, clip=False)[1] is None


def test_the_node_refuses_what_is_no_lora_of_lance(lance, loras):
    save_file({"unet.down.lora_A.weight": torch.ones(2, 2)}, loras / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors is not for Lance: it changes unet.down"):
        loaded(lance, "other.safetensors")


def test_what_the_peft_library_saves(lance, loras, pair):
    peft = pytest.importorskip("peft", reason="needs `pip install --no-deps peft accelerate`")

    class Whole(torch.nn.Module):
        """As the reference names it."""

        def __init__(self):
            super().__init__()
            self.language_model = torch.nn.Module()
            self.language_model.model = torch.nn.Module()
            self.language_model.model.layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(3))
            for layer in self.language_model.model.layers:
                layer.self_attn = torch.nn.Module()
                layer.self_attn.q_proj_moe_gen = torch.nn.Linear(64, 64)

    settings = {"r": RANK, "lora_alpha": 8, "use_rslora": True, "init_lora_weights": False}
    adapted = peft.get_peft_model(Whole(), peft.LoraConfig(target_modules=["q_proj_moe_gen"], **settings))
    adapted.save_pretrained(loras / "trained")
    model, _ = loaded(lance, "trained/adapter_model.safetensors")
    key = f"diffusion_model.{GENERATION[2]}.weight"
    wrapped = adapted.base_model.model.language_model.model.layers[2].self_attn.q_proj_moe_gen
    changed = model.patch_weight_to_device(key, return_weight=True) - lance[0].model.state_dict()[key]
    torch.testing.assert_close(changed, wrapped.get_delta_weight("default"), atol=1e-5, rtol=1e-4)
    assert relative(run(model, pair), run(lance[0], pair)) > 1e-4


# ---- ComfyUI's training node -----------------------------------------------------------------------------------------


def train(lance, pair, **changes):
    from comfy_extras.nodes_train import TrainLoraNode

    latent = torch.randn(2, 48, 1, 4, 6, generator=torch.Generator().manual_seed(2))
    settings = {
        "model": lance[0],
        "latents": {"samples": latent},
        "positive": pair[0],
        "batch_size": 1,
        "steps": 3,
        "grad_accumulation_steps": 1,
        "learning_rate": 0.01,
        "rank": RANK,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": True,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    } | changes
    return TrainLoraNode.execute(**{name: [value] for name, value in settings.items()}).args


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_checkpointing": False}, {"checkpoint_depth": 3}, {"bypass_mode": True}, {"training_dtype": "bf16"}],
    ids=str,
)
def test_cores_node_trains_a_lora(changes, lance, pair):
    plain = run(lance[0], pair)
    weights, losses, steps = train(lance, pair, **changes)
    assert steps == 3 and len(losses["loss"]) == 3 and all(0 < loss < 100 for loss in losses["loss"])
    moved = {name for name, weight in weights.items() if name.endswith("lora_up.weight") and weight.abs().max() > 0}
    assert any("q_proj_moe_gen" in name for name in moved)
    assert torch.equal(run(lance[0], pair), plain)
    assert relative(run(applied(lance, weights), pair), plain) > 1e-4


def test_cores_node_gives_every_picture_of_a_batch_all_captions(lance, pair):
    """And trains on the mean of what they predict: why the pages say that a batch is one picture."""
    for batch, branches in ((1, 1), (2, 2)):
        probe = Probe()
        train((probe.attach(lance[0]),), ([*pair[0], *pair[1]],), batch_size=batch)
        assert probe.branches == [branches] * 3
