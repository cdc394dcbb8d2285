"""A file is held once, for as long as somebody uses it."""

import gc
import shutil
import weakref
from dataclasses import replace

import torch
from comfyui_lance.dev.host import tiny_checkpoint
from comfyui_lance.lance_model import loading
from support.checkpoints import (
    LAYER,
    MODEL,
    VAE,
    check_weights,
    official,
)
from support.sampling import generate, relative


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
