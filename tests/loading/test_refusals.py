"""Every wrong file gives one clear sentence."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui_lance.dev.host import tiny_checkpoint
from comfyui_lance.lance_model import language, loading
from comfyui_lance.lance_model.checkpoint import CheckpointError
from comfyui_lance.lance_model.media import preprocess
from comfyui_lance.lance_model.resolution import IMAGE
from execution import full_type_name
from support.checkpoints import LAYER, MODEL, VAE, VISION, Repository, link, refusal, save


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
    "empty file": (lambda r: r.raw(b""), ["Lance_3B/model.safetensors is empty", "Download it again"]),
    "few bytes": (lambda r: r.raw(b"\x01\x02\x03"), ["(3 bytes)", "incomplete", "Download it again"]),
    "web page": (
        lambda r: r.raw(b"\n<!DOCTYPE html><html><body>Sign in</body></html>"),
        ["web page", "Download it again"],
    ),
    "pickle as safetensors": (
        lambda r: r.raw(pickle.dumps({"a": 1}) + b"\0" * 100),
        ["not a safetensors file", "Download it again"],
    ),
    "cut off": (cut_off, ["Lance_3B/model.safetensors (", " bytes) is incomplete", "Download it again"]),
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
    "no VAE": (without(VAE), ["There is no VAE for Lance_3B/model.safetensors", "Wan2.2_VAE.pth", "models/vae"]),
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


def test_a_vision_encoder_is_missed_when_something_is_looked_at(tiny, tmp_path):
    _, clip, _ = loading.load(link(tiny / MODEL, tmp_path / MODEL), vae=tiny / VAE)
    assert not any(name.startswith("visual.") for name in clip.cond_stage_model.state_dict())
    picture = preprocess(torch.rand(1, 56, 56, 3), IMAGE)
    assert language.encode_pair(clip, "a red fox")[0][0][0].shape[-1] == tiny_checkpoint.HIDDEN
    with pytest.raises(CheckpointError, match="no vision encoder.*Qwen2.5-VL-ViT.*models/lance.*Load Lance") as missed:
        language.encode_pair(clip, "make it blue", media=[picture])
    assert "\n" not in str(missed.value) and str(missed.value).endswith(".")


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


def test_the_page_names_the_error_shortly():
    """It prints the name before the sentence; as a rule the plugin's whole path would be in it."""
    assert full_type_name(CheckpointError) == "lance.CheckpointError"


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
