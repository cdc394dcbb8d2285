"""The dual-expert decoder, written as two streams that meet only in attention.

- `und`: text, brackets and vision tokens, through the understanding expert.
- `gen`: latent tokens, through the generation expert (the modules whose names end in `_moe_gen`).
- Within a media block attention is full and rotary positions carry the order, so the streams are never interleaved:
  queries, keys and values are joined, outputs split again. No mask, no gather.
- `context` runs everything before the target once; `forward` runs the target against those keys and values.

Module names are the keys of the official checkpoint.
"""

from __future__ import annotations

from typing import NamedTuple

import comfy.model_management
import comfy.ops
import comfy.patcher_extension
import comfy.quant_ops
import torch
import torch.nn as nn
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention, optimized_attention_for_device
from comfy.ldm.modules.diffusionmodules.mmdit import TimestepEmbedder

UND, GEN = "", "_moe_gen"
RMS_EPS = 1e-6
PER_BRANCH = ("cond_or_uncond", "uuids")  # transformer_options that list the branches of a batch

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]  # per layer: keys and values [1, kv_heads, tokens, head_dim]


class Run(NamedTuple):
    """Consecutive context tokens that share one attention rule: how many of each stream, and whether they are
    causal."""

    causal: bool
    und: int
    gen: int


ONE_TOKEN = [Run(True, 1, 0)]


class SwiGLU(nn.Module):
    def __init__(self, hidden: int, inner: int, device=None, dtype=None, operations=None):
        super().__init__()
        self.gate_proj = operations.Linear(hidden, inner, bias=False, device=device, dtype=dtype)
        self.up_proj = operations.Linear(hidden, inner, bias=False, device=device, dtype=dtype)
        self.down_proj = operations.Linear(inner, hidden, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Attention(nn.Module):
    """Projections of both experts; the attention itself is joint and happens in the layer."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, head_dim: int, device=None, dtype=None, operations=None):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        settings = {"device": device, "dtype": dtype}
        for expert in (UND, GEN):
            self.add_module("q_proj" + expert, operations.Linear(hidden, heads * head_dim, bias=True, **settings))
            self.add_module("k_proj" + expert, operations.Linear(hidden, kv_heads * head_dim, bias=True, **settings))
            self.add_module("v_proj" + expert, operations.Linear(hidden, kv_heads * head_dim, bias=True, **settings))
            self.add_module("o_proj" + expert, operations.Linear(heads * head_dim, hidden, bias=False, **settings))
            self.add_module("q_norm" + expert, operations.RMSNorm(head_dim, eps=RMS_EPS, **settings))
            self.add_module("k_norm" + expert, operations.RMSNorm(head_dim, eps=RMS_EPS, **settings))

    def project(self, x: torch.Tensor, frequencies: torch.Tensor, expert: str) -> tuple[torch.Tensor, ...]:
        """x [B, n, hidden] → queries [B, heads, n, head_dim], keys and values [B, kv_heads, n, head_dim]."""
        q = getattr(self, "q_proj" + expert)(x).unflatten(-1, (self.heads, self.head_dim))
        k = getattr(self, "k_proj" + expert)(x).unflatten(-1, (self.kv_heads, self.head_dim))
        v = getattr(self, "v_proj" + expert)(x).unflatten(-1, (self.kv_heads, self.head_dim))
        q_norm, k_norm = getattr(self, "q_norm" + expert), getattr(self, "k_norm" + expert)
        if comfy.model_management.in_training:
            # The fused kernel below has no backward.
            q, k = rotate(q_norm(q), frequencies), rotate(k_norm(k), frequencies)
        else:
            q_scale, _, q_stream = comfy.ops.cast_bias_weight(q_norm, q, offloadable=True)
            k_scale, _, k_stream = comfy.ops.cast_bias_weight(k_norm, k, offloadable=True)
            q, k = comfy.quant_ops.ck.rms_rope_split_half(q, k, frequencies, q_scale, k_scale, RMS_EPS)
            comfy.ops.uncast_bias_weight(q_norm, q_scale, None, q_stream)
            comfy.ops.uncast_bias_weight(k_norm, k_scale, None, k_stream)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def rotate(x: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [B, n, heads, head_dim] whose pairs are (i, i + head_dim / 2)."""
    a, b = x.to(frequencies.dtype).chunk(2, dim=-1)
    (aa, ab), (ba, bb) = (row.unbind(-1) for row in frequencies.unbind(-2))
    return torch.cat([aa * a + ab * b, ba * a + bb * b], dim=-1).to(x.dtype)


class DecoderLayer(nn.Module):
    def __init__(
        self,
        hidden: int,
        inner: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        device=None,
        dtype=None,
        operations=None,
    ):
        super().__init__()
        settings = {"device": device, "dtype": dtype}
        self.self_attn = Attention(hidden, heads, kv_heads, head_dim, operations=operations, **settings)
        for expert in (UND, GEN):
            self.add_module("input_layernorm" + expert, operations.RMSNorm(hidden, eps=RMS_EPS, **settings))
            self.add_module("post_attention_layernorm" + expert, operations.RMSNorm(hidden, eps=RMS_EPS, **settings))
            self.add_module("mlp" + expert, SwiGLU(hidden, inner, operations=operations, **settings))

    def project(self, x: torch.Tensor, frequencies: torch.Tensor, expert: str) -> tuple[torch.Tensor, ...]:
        return self.self_attn.project(getattr(self, "input_layernorm" + expert)(x), frequencies, expert)

    def finish(self, x: torch.Tensor, attended: torch.Tensor, expert: str) -> torch.Tensor:
        x = x + getattr(self.self_attn, "o_proj" + expert)(attended)
        return x + getattr(self, "mlp" + expert)(getattr(self, "post_attention_layernorm" + expert)(x))

    def attend(self, attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **kwargs) -> torch.Tensor:
        """Grouped-query attention; returns [B, n, heads·head_dim]."""
        gqa = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
        return attention(q, k, v, q.shape[1], skip_reshape=True, **gqa, **kwargs)

    def forward(self, und, gen, frequencies, past, transformer_options):
        """One layer of the target block: brackets [B, 2, hidden] and latents [B, n, hidden] see the context and each
        other. `past` holds the context's pieces for each branch; the branches share the batch evenly, in order."""
        streams = self.project(und, frequencies[0], UND), self.project(gen, frequencies[1], GEN)
        chunks, out = (x.chunk(len(past)) for stream in streams for x in stream), []
        for i, (pieces, qu, ku, vu, qg, kg, vg) in enumerate(zip(past, *chunks)):
            share = len(qu)
            keys = torch.cat([*(k.expand(share, -1, -1, -1) for k, _ in pieces), ku, kg], dim=2)
            values = torch.cat([*(v.expand(share, -1, -1, -1) for _, v in pieces), vu, vg], dim=2)
            queries = torch.cat([qu, qg], dim=2)
            options = transformer_options
            if len(past) > 1:
                options = options | {key: options[key][i : i + 1] for key in PER_BRANCH if key in options}
            out.append(self.attend(optimized_attention, queries, keys, values, transformer_options=options))
        attended = zip(*(o.split([und.shape[1], gen.shape[1]], dim=1) for o in out))
        # Made contiguous: from pieces of a larger tensor a projection becomes one product for each of the batch.
        attended = [torch.cat(o) if len(o) > 1 else o[0].contiguous() for o in attended]
        return self.finish(und, attended[0], UND), self.finish(gen, attended[1], GEN)

    def context(self, und, gen, frequencies, runs: list[Run], past, transformer_options):
        """One layer of the context: each run attends to everything before it and, causally or fully, to itself."""
        qu, ku, vu = self.project(und, frequencies[0], UND)
        qg, kg, vg = (
            self.project(gen, frequencies[1], GEN) if gen is not None else (qu[:, :, :0], ku[:, :, :0], vu[:, :, :0])
        )
        lengths = [run.und for run in runs], [run.gen for run in runs]
        queries, keys, values = (
            [torch.cat(pair, dim=2) for pair in zip(u.split(lengths[0], dim=2), g.split(lengths[1], dim=2))]
            for u, g in ((qu, qg), (ku, kg), (vu, vg))
        )
        known = sum(k.shape[2] for k, _ in past)
        keys = torch.cat([*(k for k, _ in past), *keys], dim=2)
        values = torch.cat([*(v for _, v in past), *values], dim=2)
        out_und, out_gen, end = [], [], known
        for run, q in zip(runs, queries):
            end += run.und + run.gen
            attention, options = optimized_attention, {"transformer_options": transformer_options}
            if run.causal:
                attention = optimized_attention_for_device(q.device, mask=True, small_input=True)
                options = {"mask": causal_mask(run.und, end, q)}
            out = self.attend(attention, q, keys[:, :, :end], values[:, :, :end], **options)
            out_und.append(out[:, : run.und])
            out_gen.append(out[:, run.und :])
        und = self.finish(und, torch.cat(out_und, dim=1), UND)
        gen = self.finish(gen, torch.cat(out_gen, dim=1), GEN) if gen is not None else None
        if known:  # copies, so that what is shared with the past is held once
            keys, values = keys[:, :, known:].clone(), values[:, :, known:].clone()
        return und, gen, (keys, values)

    def read(self, und, frequencies, cache, known: int, runs: list[Run]):
        """One layer of a question or of an answer's next token, appending to `cache` after its `known` tokens."""
        q, k, v = self.project(und, frequencies, UND)
        keys, values = cache
        keys[:, :, known : known + und.shape[1]] = k
        values[:, :, known : known + und.shape[1]] = v
        out, start = [], 0
        for run in runs:
            queries = q[:, :, start : start + run.und]
            start += run.und
            end = known + start
            mask = {"mask": causal_mask(run.und, end, q)} if run.causal and run.und > 1 else {}
            attention = optimized_attention_for_device(q.device, mask=bool(mask), small_input=run.causal)
            out.append(self.attend(attention, queries, keys[:, :, :end], values[:, :, :end], **mask))
        return self.finish(und, torch.cat(out, dim=1), UND)


def causal_mask(queries: int, keys: int, like: torch.Tensor) -> torch.Tensor:
    """Additive mask [queries, keys] for queries that are the last of the keys."""
    return torch.full((queries, keys), float("-inf"), dtype=like.dtype, device=like.device).triu(keys - queries + 1)


class Decoder(nn.Module):
    def __init__(self, layers: int, hidden: int, device=None, dtype=None, operations=None, **dims):
        super().__init__()
        settings = {"device": device, "dtype": dtype}
        self.layers = nn.ModuleList(
            DecoderLayer(hidden, operations=operations, **settings, **dims) for _ in range(layers)
        )
        self.norm = operations.RMSNorm(hidden, eps=RMS_EPS, **settings)
        self.norm_moe_gen = operations.RMSNorm(hidden, eps=RMS_EPS, **settings)


class LanguageModel(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.model = Decoder(**kwargs)


def at_layer(pieces: list[KeyValues], i: int, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A layer's keys and values of each piece, brought to the device from where they were kept."""
    return [tuple(x.to(device) for x in piece[i]) for piece in pieces]


class LanceTransformer(nn.Module):
    """hidden → hidden for both experts, and the doors between latents and hidden (vae2llm, llm2vae, time_embedder)."""

    def __init__(
        self,
        hidden: int,
        layers: int,
        inner: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        channels: int,
        image_model=None,
        device=None,
        dtype=None,
        operations=None,
    ):
        super().__init__()
        self.dtype = dtype
        self.hidden, self.heads, self.kv_heads, self.head_dim, self.inner = hidden, heads, kv_heads, head_dim, inner
        settings = {"device": device, "dtype": dtype, "operations": operations}
        self.language_model = LanguageModel(
            layers=layers, hidden=hidden, inner=inner, heads=heads, kv_heads=kv_heads, head_dim=head_dim, **settings
        )
        self.time_embedder = TimestepEmbedder(hidden, **settings)
        self.vae2llm = operations.Linear(channels, hidden, bias=True, device=device, dtype=dtype)
        self.llm2vae = operations.Linear(hidden, channels, bias=True, device=device, dtype=dtype)

    @property
    def layers(self) -> nn.ModuleList:
        return self.language_model.model.layers

    def embed_latents(self, x: torch.Tensor, timesteps: torch.Tensor, tables: list[torch.Tensor]) -> torch.Tensor:
        """Latents [B, 48, t, h, w] and τ, [B] or one per token [B, t·h·w], → tokens [B, t·h·w, hidden]."""
        tokens = self.vae2llm(x.movedim(1, -1))
        d = tables[0].shape[1]
        time, rows, columns = tables
        tokens[..., :d] += time[:, None, None]
        tokens[..., d : 2 * d] += rows[:, None]
        tokens[..., 2 * d :] += columns
        tau = self.time_embedder(timesteps.flatten(), tokens.dtype).unflatten(0, (x.shape[0], -1))
        return tokens.flatten(1, 3) + tau

    def context(
        self,
        und: torch.Tensor,
        gen: torch.Tensor | None,
        frequencies,
        runs: list[Run],
        past: list[KeyValues] = (),
        transformer_options={},
        keep: torch.device | None = None,
    ) -> tuple[KeyValues, torch.Tensor]:
        """Keys and values of context tokens, and the last hidden states [B, n, hidden] of the understanding stream.

        und [B, n, hidden] and gen [B, m, hidden] hold the tokens of all runs in order; `past` is what came before them.
        Keys and values go to `keep`; None leaves them where they are.
        """
        known = []
        for i, layer in enumerate(self.layers):
            layer_past = at_layer(past, i, und.device)
            und, gen, kv = layer.context(und, gen, frequencies, runs, layer_past, transformer_options)
            known.append(tuple(x.to(keep or x.device) for x in kv))
        return known, und

    def cache(self, tokens: int, device, dtype) -> KeyValues:
        """Room for the keys and values of that many tokens."""
        shape = (1, self.kv_heads, tokens, self.head_dim)
        return [
            (torch.empty(shape, device=device, dtype=dtype), torch.empty(shape, device=device, dtype=dtype))
            for _ in self.layers
        ]

    def read(
        self,
        und: torch.Tensor,
        frequencies: torch.Tensor,
        cache: KeyValues,
        known: int,
        runs: list[Run] = ONE_TOKEN,
    ) -> torch.Tensor:
        """Last hidden states [1, n, hidden] of n understanding tokens that follow the `known` ones in `cache`, which
        they join."""
        for layer, kv in zip(self.layers, cache):
            und = layer.read(und, frequencies, kv, known, runs)
        return und

    def forward(self, x, timesteps, context=None, control=None, transformer_options={}, **kwargs):
        # Step caches keep and change the tensor they are given, which in float32 is the sampler's own.
        x = x.clone()
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._forward,
            self,
            comfy.patcher_extension.get_all_wrappers(
                comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
            ),
        ).execute(x, timesteps, transformer_options, **kwargs)

    def _forward(self, x, timesteps, transformer_options, brackets, frequencies, tables, past, denoise_mask=None):
        """Velocity [B, 48, t, h, w] of the target.

        `past` holds the pieces of keys and values for each branch. Frequencies and `brackets` are [B, ...] or [1, ...].
        """
        gen = self.embed_latents(x, timesteps, tables)
        und = brackets.expand(x.shape[0], -1, -1)
        replace = transformer_options.get("patches_replace", {}).get("dit", {})
        transformer_options["total_blocks"] = len(self.layers)
        transformer_options["block_type"] = "double"
        for i, layer in enumerate(self.layers):
            transformer_options["block_index"] = i
            layer_past = [at_layer(pieces, i, gen.device) for pieces in past]
            if ("double_block", i) in replace:

                def block(args, layer=layer, layer_past=layer_past):
                    txt, img = layer(args["txt"], args["img"], args["pe"], layer_past, args["transformer_options"])
                    return {"img": img, "txt": txt}

                out = replace[("double_block", i)](
                    {"img": gen, "txt": und, "pe": frequencies, "transformer_options": transformer_options},
                    {"original_block": block},
                )
                und, gen = out["txt"], out["img"]
            else:
                und, gen = layer(und, gen, frequencies, layer_past, transformer_options)
        velocity = self.llm2vae(self.language_model.model.norm_moe_gen(gen))
        velocity = velocity.unflatten(1, x.shape[2:]).movedim(-1, 1)
        # Kept places do not move; CFG's norms then leave them out by themselves.
        return velocity if denoise_mask is None else velocity * denoise_mask
