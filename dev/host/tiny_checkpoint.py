"""A tiny Lance checkpoint with seeded random weights: `python tiny_checkpoint.py OUT` writes the official layout.

    OUT/Lance_3B/model.safetensors          language_model.*, time_embedder.*, vae2llm.*, llm2vae.*
    OUT/Lance_3B/llm_config.json
    OUT/Lance_3B_Video/                     the same two files
    OUT/Qwen2.5-VL-ViT/vit.safetensors      blocks.*, merger.*, patch_embed.*
    OUT/Qwen2.5-VL-ViT/config.json
    OUT/Wan2.2_VAE.safetensors              encoder.*, decoder.*: a tiny autoencoder (TAEHV) in Wan 2.2's latent space

Every tensor is float32 and drawn from a generator seeded with the CRC-32 of its key, so the same keys and shapes give
the same numbers everywhere. `latent_pos_embed.pos_embed` is left out, as it is a fixed table.
"""

import json
import math
import os
import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, MLP, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LATENT = 64, 96, 3, 2, 1, 32, 151936, 48
VIT_DEPTH, VIT_HIDDEN, VIT_MLP, VIT_HEADS, PATCH, MERGE = 4, 64, 96, 2, 14, 2
VERSION = 2  # of what is written, for folders that keep it
CHECKSUM = 341128146048  # checksum(*state_dicts())

LLM_CONFIG = dict(
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=MLP,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    rope_theta=1000000.0,
    rms_norm_eps=1e-6,
    hidden_act="silu",
    tie_word_embeddings=False,
    rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]},
)
VIT_CONFIG = dict(
    depth=VIT_DEPTH,
    hidden_size=VIT_HIDDEN,
    intermediate_size=VIT_MLP,
    num_heads=VIT_HEADS,
    out_hidden_size=HIDDEN,
    patch_size=PATCH,
    spatial_merge_size=MERGE,
    window_size=112,
    fullatt_block_indexes=[1, 3],
    tokens_per_second=2,
    temporal_patch_size=2,
    in_channels=3,
    hidden_act="silu",
)

Shapes = dict[str, tuple[int, ...]]
StateDict = dict[str, torch.Tensor]

NORMS = (
    "norm.weight",
    "norm1.weight",
    "norm2.weight",
    "ln_q.weight",
    "norm_moe_gen.weight",
    "layernorm.weight",
    "layernorm_moe_gen.weight",
)


def seeded(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor of that key: norms around 1, biases at 0.1, embeddings at 1, the rest at 1/sqrt(fan-in)."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if key.endswith(NORMS):
        return 1 + 0.1 * noise
    if key.endswith(".bias"):
        return 0.1 * noise
    if "embed_tokens" in key:
        return noise
    return noise / math.sqrt(math.prod(shape[1:]))


def linear(name: str, out: int, fan_in: int) -> Shapes:
    """Weight and bias of a linear layer."""
    return {f"{name}.weight": (out, fan_in), f"{name}.bias": (out,)}


def transformer_shapes() -> Shapes:
    """Keys and shapes of model.safetensors."""
    model, query, value = "language_model.model", HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: Shapes = {f"{model}.embed_tokens.weight": (VOCAB, HIDDEN), "language_model.lm_head.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        layer = f"{model}.layers.{i}"
        for expert in ("", "_moe_gen"):
            for name, out in (("q", query), ("k", value), ("v", value)):
                shapes |= linear(f"{layer}.self_attn.{name}_proj{expert}", out, HIDDEN)
            shapes[f"{layer}.self_attn.o_proj{expert}.weight"] = (HIDDEN, query)
            for name in ("q_norm", "k_norm"):
                shapes[f"{layer}.self_attn.{name}{expert}.weight"] = (HEAD_DIM,)
            for name, shape in (("gate", (MLP, HIDDEN)), ("up", (MLP, HIDDEN)), ("down", (HIDDEN, MLP))):
                shapes[f"{layer}.mlp{expert}.{name}_proj.weight"] = shape
            for name in ("input", "post_attention"):
                shapes[f"{layer}.{name}_layernorm{expert}.weight"] = (HIDDEN,)
    shapes |= {f"{model}.norm.weight": (HIDDEN,), f"{model}.norm_moe_gen.weight": (HIDDEN,)}
    shapes |= linear("time_embedder.mlp.0", HIDDEN, 256) | linear("time_embedder.mlp.2", HIDDEN, HIDDEN)
    return shapes | linear("vae2llm", HIDDEN, LATENT) | linear("llm2vae", LATENT, HIDDEN)


def vit_shapes() -> Shapes:
    """Keys and shapes of vit.safetensors."""
    shapes: Shapes = {"patch_embed.proj.weight": (VIT_HIDDEN, 3, 2, PATCH, PATCH)}
    for i in range(VIT_DEPTH):
        block = f"blocks.{i}"
        shapes |= {f"{block}.norm1.weight": (VIT_HIDDEN,), f"{block}.norm2.weight": (VIT_HIDDEN,)}
        shapes |= linear(f"{block}.attn.qkv", 3 * VIT_HIDDEN, VIT_HIDDEN)
        shapes |= linear(f"{block}.attn.proj", VIT_HIDDEN, VIT_HIDDEN)
        shapes |= linear(f"{block}.mlp.gate_proj", VIT_MLP, VIT_HIDDEN)
        shapes |= linear(f"{block}.mlp.up_proj", VIT_MLP, VIT_HIDDEN)
        shapes |= linear(f"{block}.mlp.down_proj", VIT_HIDDEN, VIT_MLP)
    wide = VIT_HIDDEN * MERGE**2
    shapes["merger.ln_q.weight"] = (VIT_HIDDEN,)
    return shapes | linear("merger.mlp.0", wide, wide) | linear("merger.mlp.2", HIDDEN, wide)


def vae_shapes() -> Shapes:
    """Keys and shapes of a TAEHV with 48 latent channels, numbered like its two `nn.Sequential`s
    (github.com/madebyollin/taehv)."""
    shapes: Shapes = {}

    def conv(name: str, out: int, fan_in: int, kernel: int = 3, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, fan_in, kernel, kernel)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def memory_blocks(name: str, first: int, width: int) -> None:
        for block in range(first, first + 3):
            for layer, fan_in in ((0, 2 * width), (2, width), (4, width)):  # the first also sees the frame before
                conv(f"{name}.{block}.conv.{layer}", width, fan_in)

    pixels = 3 * 2**2  # RGB of a 2 × 2 patch
    conv("encoder.0", 64, pixels)
    for start, stride in ((2, 2), (7, 2), (12, 1)):
        conv(f"encoder.{start}.conv", 64, 64 * stride, kernel=1, bias=False)  # in time
        conv(f"encoder.{start + 1}", 64, 64, bias=False)  # in space
        memory_blocks("encoder", start + 2, 64)
    conv("encoder.17", LATENT, 64)

    conv("decoder.1", 256, LATENT)
    for start, width, narrower, stride in ((3, 256, 128, 1), (9, 128, 64, 2), (15, 64, 64, 2)):
        memory_blocks("decoder", start, width)
        conv(f"decoder.{start + 4}.conv", width * stride, width, kernel=1, bias=False)  # in time
        conv(f"decoder.{start + 5}", narrower, width, bias=False)  # after the upsampling in space
    conv("decoder.22", pixels, 64)
    return shapes


def state_dicts() -> tuple[StateDict, StateDict]:
    """(transformer, vit), keyed as in the official files. The ViT's seeds carry the prefix `vit_model.`."""
    transformer = {key: seeded(key, shape) for key, shape in transformer_shapes().items()}
    vit = {key: seeded(f"vit_model.{key}", shape) for key, shape in vit_shapes().items()}
    return transformer, vit


def vae_state_dict() -> StateDict:
    """The tiny autoencoder, which ComfyUI's VAE loader recognises. The seeds carry the prefix `vae.`."""
    weights = {key: seeded(f"vae.{key}", shape) for key, shape in vae_shapes().items()}
    weights["decoder.22.bias"] += 0.5  # pictures around middle grey; around black, half of all would be cut off
    return weights


def checksum(*dicts: StateDict) -> int:
    """The sum of the CRC-32 of all tensors' bytes."""
    return sum(zlib.crc32(tensor.numpy().tobytes()) for sd in dicts for tensor in sd.values())


def write(out: Path) -> None:
    """Write the official layout into `out`, unless it is there; a file appears only when it is complete."""
    model, vision, vae = out / "Lance_3B", out / "Qwen2.5-VL-ViT", out / "Wan2.2_VAE.safetensors"
    if vae.exists():  # the last to be written
        return
    transformer, vit = state_dicts()
    for folder, name, weights, config_name, config in (
        (model, "model.safetensors", transformer, "llm_config.json", LLM_CONFIG),
        (vision, "vit.safetensors", vit, "config.json", VIT_CONFIG),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        save(weights, folder / name)
        (folder / config_name).write_text(json.dumps(config, indent=2))
    video = out / "Lance_3B_Video"
    video.mkdir(exist_ok=True)
    for file in model.iterdir():
        (video / file.name).unlink(missing_ok=True)
        os.link(file, video / file.name)
    save(vae_state_dict(), vae)


def save(weights: StateDict, path: Path) -> None:
    """Write beside the place, then move into it."""
    partial = path.with_suffix(".partial")
    save_file(weights, partial)
    partial.replace(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: tiny_checkpoint.py OUT")
    write(Path(sys.argv[1]))
