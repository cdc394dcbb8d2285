"""The dual-expert decoder, hidden states in and out.

`context` runs everything before the target once, `forward` runs the target against those keys and values, and `read`
runs text through the understanding expert alone.

Module names are the keys of the official checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

import comfy.patcher_extension
import torch
import torch.nn as nn
from comfy.ldm.modules.diffusionmodules.mmdit import TimestepEmbedder
from comfy.model_prefetch import make_prefetch_queue, prefetch_queue_pop

from . import patches, streaming
from .layer import ONE_TOKEN, RMS_EPS, DecoderLayer, Run
from .streaming import KeyValues

COUNT_KEPT = "lance_count_kept"  # in transformer_options: velocities of kept places are to be seen, by CFG's norms


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
        self.in_channels = self.out_channels = channels  # read by guidance nodes
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

    def understanding(self) -> list[nn.ModuleList]:
        """Of each layer what text goes through."""
        return [layer.understanding() for layer in self.layers]

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
        keep: Callable[[torch.Tensor], torch.Tensor] | None = None,
        states: bool = False,
    ) -> tuple[KeyValues, torch.Tensor]:
        """Keys and values of context tokens, and the understanding stream as it leaves the last layer.

        und [B, n, hidden] and gen [B, m, hidden] hold the tokens of all runs in order; `past` is what came before them.
        Keys and values are what `keep` makes of them. The last layer is not finished unless its `states` are wanted.
        """
        known, final = [], len(self.layers) - 1
        parts = list(self.layers) if gen is not None else self.understanding()
        queue = make_prefetch_queue(parts, und.device, transformer_options)
        pasts = streaming.layers(past, len(self.layers), und.device)
        for i, (layer, part, layer_past) in enumerate(zip(self.layers, parts, pasts)):
            prefetch_queue_pop(queue, und.device, part)
            last = i == final and not states
            und, gen, kv = layer.context(und, gen, frequencies, runs, layer_past, transformer_options, last)
            known.append(tuple(map(keep, kv)) if keep is not None else kv)
        prefetch_queue_pop(queue, und.device, None)
        return known, und

    def cache(self, tokens: int, device, dtype) -> list[torch.Tensor]:
        """Room for each layer's values and keys of that many tokens, beside each other [1, tokens and a few,
        2 · kv_heads, head_dim]. In the few `decoding` has the last token's queries."""
        few = -(-self.heads // (2 * self.kv_heads))
        shape = (1, tokens + few, 2 * self.kv_heads, self.head_dim)
        return [torch.empty(shape, device=device, dtype=dtype) for _ in self.layers]

    def read(
        self,
        und: torch.Tensor,
        frequencies: torch.Tensor,
        cache: list[torch.Tensor],
        known: int,
        runs: list[Run] = ONE_TOKEN,
        transformer_options={},
    ) -> torch.Tensor:
        """Last hidden state [1, 1, hidden] of understanding tokens [1, n, hidden] that follow the `known` ones in
        `cache`, which they join."""
        parts = self.understanding()
        queue = make_prefetch_queue(parts, und.device, transformer_options)
        for i, (layer, part, kv) in enumerate(zip(self.layers, parts, cache)):
            prefetch_queue_pop(queue, und.device, part)
            und = layer.read(und, frequencies, kv, known, runs, last=i + 1 == len(self.layers))
        prefetch_queue_pop(queue, und.device, None)
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

    def _forward(
        self, x, timesteps, transformer_options, brackets, frequencies, tables, past, denoise_mask=None, compiled=None
    ):
        """Velocity [B, 48, t, h, w] of the target.

        `past` holds the pieces of keys and values for each branch. Frequencies and `brackets` are [B, ...] or [1, ...].
        """
        gen = self.embed_latents(x, timesteps, tables)
        und = brackets.expand(x.shape[0], -1, -1)
        frequencies = [f.expand(x.shape[0], *f.shape[1:]).flatten(0, 1)[None] for f in frequencies]
        replace = transformer_options.get("patches_replace", {}).get("dit", {})
        transformer_options["total_blocks"] = len(self.layers)
        transformer_options["block_type"] = "double"
        contexts = [streaming.layers(pieces, len(self.layers), gen.device) for pieces in past]
        count, device = len(self.layers), gen.device
        whole = patches.present(transformer_options)  # patches see the brackets in every layer
        queue = make_prefetch_queue(list(self.layers), device, transformer_options)
        for i, layer in enumerate(self.layers):
            prefetch_queue_pop(queue, device, layer)
            transformer_options["block_index"] = i
            last = i + 1 == count and not whole
            settings = {"past": [next(pieces) for pieces in contexts], "last": last, "compiled": compiled}
            if ("double_block", i) in replace:

                def block(args, layer=layer, settings=settings):
                    options = args["transformer_options"]
                    txt, img = layer(args["txt"], args["img"], args["pe"], transformer_options=options, **settings)
                    return {"img": img, "txt": txt}

                out = replace[("double_block", i)](
                    {"img": gen, "txt": und, "pe": frequencies, "transformer_options": transformer_options},
                    {"original_block": block},
                )
                und, gen = out["txt"], out["img"]
            else:
                und, gen = layer(und, gen, frequencies, transformer_options=transformer_options, **settings)
        prefetch_queue_pop(queue, device, None)
        velocity = self.llm2vae(self.language_model.model.norm_moe_gen(gen))
        velocity = velocity.unflatten(1, x.shape[2:]).movedim(-1, 1)
        if denoise_mask is None:
            return velocity
        # Kept places do not move; CFG's norms then leave them out by themselves. The sampler puts back what they hold.
        counted = denoise_mask == 0 if transformer_options.get(COUNT_KEPT) else 0
        return velocity * (denoise_mask + counted)
