"""A layer of the decoder: both experts' weights, and attention that joins their streams.

- `und`: text, brackets and vision tokens, through the understanding expert.
- `gen`: latent tokens, through the generation expert (the modules whose names end in `_moe_gen`).
- Within a media block attention is full and rotary positions carry the order, so the streams are never interleaved:
  queries, keys and values are joined along the tokens, outputs split again. No mask, no gather.

Module names are the keys of the official checkpoint.
"""

from __future__ import annotations

from typing import NamedTuple

import comfy.model_management
import comfy.ops
import comfy.quant_ops
import torch
import torch.nn as nn
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention, optimized_attention_for_device

from .patches import AttentionPatches
from .streaming import KeyValue

UND, GEN = "", "_moe_gen"
RMS_EPS = 1e-6
PER_BRANCH = ("cond_or_uncond", "uuids")  # transformer_options that list the branches of a batch


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

    def queries(self, x: torch.Tensor, frequencies: torch.Tensor, expert: str) -> torch.Tensor:
        """x [B, n, hidden] → [B, n, heads, head_dim]."""
        q = getattr(self, "q_proj" + expert)(x).unflatten(-1, (self.heads, self.head_dim))
        return self._placed(q, frequencies, "q_norm" + expert)

    def keys_values(self, x: torch.Tensor, frequencies: torch.Tensor, expert: str) -> KeyValue:
        """x [B, n, hidden] → keys and values [B, n, kv_heads, head_dim]."""
        k = getattr(self, "k_proj" + expert)(x).unflatten(-1, (self.kv_heads, self.head_dim))
        v = getattr(self, "v_proj" + expert)(x).unflatten(-1, (self.kv_heads, self.head_dim))
        return self._placed(k, frequencies, "k_norm" + expert), v

    def _placed(self, x: torch.Tensor, frequencies: torch.Tensor, name: str) -> torch.Tensor:
        """Normalised by head and rotated to its position."""
        norm = getattr(self, name)
        if comfy.model_management.in_training:  # the fused kernel has no backward
            return rotate(norm(x), frequencies)
        # One weight at a time: those on their way from the computer's memory may share a buffer.
        scale, _, stream = comfy.ops.cast_bias_weight(norm, x, offloadable=True)
        x = comfy.quant_ops.ck.rms_rope_split_half1(x, frequencies, scale, RMS_EPS)
        comfy.ops.uncast_bias_weight(norm, scale, None, stream)
        return x


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

    def understanding(self) -> nn.ModuleList:
        """What text and vision tokens go through."""
        return nn.ModuleList(m for name, m in self._named_parts() if not name.endswith(GEN))

    def _named_parts(self):
        yield from self.self_attn.named_children()
        yield from ((name, m) for name, m in self.named_children() if m is not self.self_attn)

    def normed(self, x: torch.Tensor, expert: str) -> torch.Tensor:
        return getattr(self, "input_layernorm" + expert)(x)

    def project(self, x: torch.Tensor, frequencies: torch.Tensor, expert: str, queries: bool) -> list[torch.Tensor]:
        """Of x [B, n, hidden] keys, values and, where wanted, queries, each [B, n, its heads, head_dim]."""
        x = self.normed(x, expert)
        out = [*self.self_attn.keys_values(x, frequencies, expert)]
        return [*out, self.self_attn.queries(x, frequencies, expert)] if queries else out

    def finish(self, x: torch.Tensor, attended: torch.Tensor, expert: str) -> torch.Tensor:
        x = x + getattr(self.self_attn, "o_proj" + expert)(attended)
        return x + getattr(self, "mlp" + expert)(getattr(self, "post_attention_layernorm" + expert)(x))

    def forward(self, und, gen, frequencies, past, transformer_options, last=False, compiled=None):
        """One layer of the target block: brackets [B, 2, hidden] and latents [B, n, hidden] see the context and each
        other. `past` holds the context's pieces for each branch; the branches share the batch evenly, in order. Of the
        last layer only the latents are read, so the brackets leave it as they came.

        Each stream passes the products as one row of all its tokens, whose frequencies are [1, B·n, ...]. `compiled`
        are `project` and `finish` as a node has compiled them, see `compiling`.
        """
        project, finish = compiled or (DecoderLayer.project, DecoderLayer.finish)
        rows = [x.flatten(0, 1)[None] for x in (und, gen)]

        def batched(x: torch.Tensor) -> torch.Tensor:
            return x[0].unflatten(0, (len(gen), -1))

        (ku, vu, *qu), (kg, vg, *qg) = (
            map(batched, project(self, row, angles, expert, wanted))
            for row, angles, expert, wanted in zip(rows, frequencies, (UND, GEN), (not last, True))
        )
        queries, parts = torch.cat([*qu, *qg], dim=1) if qu else qg[0], (ku, vu, kg, vg)
        brackets = 0 if last else und.shape[1]
        out = self._attended(queries, parts, past, transformer_options, brackets)
        attended = zip(*(o.split([brackets, gen.shape[1]], dim=1) for o in out))
        # Made contiguous: from pieces of a larger tensor a projection becomes one product for each of the batch.
        attended = [torch.cat(o) if len(o) > 1 else o[0].contiguous() for o in attended]
        und_out, gen_out = attended[0].flatten(0, 1)[None], attended[1].flatten(0, 1)[None]
        und = und if last else batched(finish(self, rows[0], und_out, UND))
        return und, batched(finish(self, rows[1], gen_out, GEN))

    def _attended(self, queries, parts, past, transformer_options, brackets: int) -> list[torch.Tensor]:
        """The target's attention, as patches leave it: [B, n, heads · head_dim] of all branches or of each."""
        patches = AttentionPatches.of(transformer_options, brackets, queries.shape[1] - brackets)
        if patches is None:
            return self._joint(queries, parts, past, transformer_options)
        queries, parts = patches.inputs(queries, parts)
        if patches.replacement is not None:
            out = patches.instead(queries, parts)
        else:
            out = torch.cat(self._joint(queries, parts, past, transformer_options))
        return [patches.output(out)]

    def _joint(self, queries, parts, past, transformer_options) -> list[torch.Tensor]:
        """Attention of each branch's target [B, n, heads, head_dim] over its context and itself. `parts` are keys and
        values of brackets, then of latents."""
        out = []
        for i, (pieces, q, ku, vu, kg, vg) in enumerate(zip(past, *(x.chunk(len(past)) for x in (queries, *parts)))):
            keys = torch.cat([*(k.expand(len(q), -1, -1, -1) for k, _ in pieces), ku, kg], dim=1)
            values = torch.cat([*(v.expand(len(q), -1, -1, -1) for _, v in pieces), vu, vg], dim=1)
            options = transformer_options
            if len(past) > 1:
                options = options | {key: options[key][i : i + 1] for key in PER_BRANCH if key in options}
            out.append(attend(optimized_attention, q, keys, values, transformer_options=options))
        return out

    def context(self, und, gen, frequencies, runs: list[Run], past, transformer_options, last=False):
        """One layer of the context: each run attends to everything before it and, causally or fully, to itself. Of the
        `last` layer only keys and values are wanted."""
        attn, known = self.self_attn, sum(k.shape[1] for k, _ in past)
        und_in = self.normed(und, UND)
        parts = [attn.keys_values(und_in, frequencies[0], UND)]
        if gen is not None:
            gen_in = self.normed(gen, GEN)
            parts.append(attn.keys_values(gen_in, frequencies[1], GEN))
        keys, values = (in_order(streams, runs) for streams in zip(*parts))
        if last:
            return und, gen, (keys, values)
        queries = [attn.queries(und_in, frequencies[0], UND)]
        if gen is not None:
            queries.append(attn.queries(gen_in, frequencies[1], GEN))
        queries = in_order(queries, runs).split([run.und + run.gen for run in runs], dim=1)
        all_keys = torch.cat([*(k for k, _ in past), keys], dim=1) if known else keys
        all_values = torch.cat([*(v for _, v in past), values], dim=1) if known else values
        out_und, out_gen, end = [], [], known
        for run, q in zip(runs, queries):
            end += run.und + run.gen
            attention, options = optimized_attention, {"transformer_options": transformer_options}
            if run.causal:
                attention = optimized_attention_for_device(q.device, mask=True, small_input=True)
                options = {"mask": causal_mask(run.und, end, q)}
            out = attend(attention, q, all_keys[:, :end], all_values[:, :end], **options)
            out_und.append(out[:, : run.und])
            out_gen.append(out[:, run.und :])
        und = self.finish(und, torch.cat(out_und, dim=1), UND)
        gen = self.finish(gen, torch.cat(out_gen, dim=1), GEN) if gen is not None else None
        return und, gen, (keys, values)

    def read(self, und, frequencies, cache: torch.Tensor, known: int, runs: list[Run], last=False):
        """One layer of a question or of an answer's next token, appending to `cache` after its `known` tokens. Of the
        `last` layer only the last token is wanted."""
        attn, normed = self.self_attn, self.normed(und, UND)
        end = known + und.shape[1]
        values, keys = cache.chunk(2, dim=2)
        keys[:, known:end], values[:, known:end] = attn.keys_values(normed, frequencies, UND)
        if last:
            und, normed, frequencies, runs = und[:, -1:], normed[:, -1:], frequencies[:, -1:], ONE_TOKEN
        q, out, end = attn.queries(normed, frequencies, UND), [], end - und.shape[1]
        for run, queries in zip(runs, q.split([run.und for run in runs], dim=1)):
            end += run.und
            mask = {"mask": causal_mask(run.und, end, q)} if run.causal and run.und > 1 else {}
            attention = optimized_attention_for_device(q.device, mask=bool(mask), small_input=run.causal)
            out.append(attend(attention, queries, keys[:, :end], values[:, :end], **mask))
        return self.finish(und, out[0] if len(out) == 1 else torch.cat(out, dim=1), UND)


def attend(attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options) -> torch.Tensor:
    """Grouped-query attention of [B, n, heads, head_dim] over [B, m, kv_heads, head_dim]; [B, n, heads · head_dim]."""
    heads, q, k, v = q.shape[2], *(x.transpose(1, 2) for x in (q, k, v))
    if k.shape[1] != heads:
        if takes_groups(q):
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    return attention(q, k, v, heads, skip_reshape=True, **options)


def takes_groups(q: torch.Tensor) -> bool:
    """Whether fused attention takes fewer key heads than query heads. Where it does not, PyTorch would fall back to
    writing out the whole score matrix: in float32 on cards, and in builds for other makers' cards."""
    if comfy.model_management.is_device_cpu(q.device):
        return True
    return comfy.model_management.is_nvidia() and q.dtype in (torch.float16, torch.bfloat16)


def in_order(streams: list[torch.Tensor], runs: list[Run]) -> torch.Tensor:
    """The tokens of both streams [B, n, ...], run after run: understanding tokens first, then latents."""
    if len(streams) == 1:
        return streams[0]
    parts = zip(streams[0].split([run.und for run in runs], dim=1), streams[1].split([run.gen for run in runs], dim=1))
    return torch.cat([part for run in parts for part in run], dim=1)


def causal_mask(queries: int, keys: int, like: torch.Tensor) -> torch.Tensor:
    """Additive mask [queries, keys] for queries that are the last of the keys."""
    return torch.full((queries, keys), float("-inf"), dtype=like.dtype, device=like.device).triu(keys - queries + 1)
