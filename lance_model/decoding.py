"""An answer's tokens, one pass each through the understanding expert.

A token is so little work that preparing the weights for it takes longer: looking where they are, casting them, adding
LoRAs. `Held` does that once an answer for all layers that the device has room for, and runs them with as few operations
as there can be. The other layers run as for a question.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import comfy.model_management
import comfy.ops
import torch
import torch.nn as nn
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention_for_device
from comfy.model_prefetch import make_prefetch_queue, prefetch_queue_pop
from comfy.quant_ops import ck

from .layer import ONE_TOKEN, RMS_EPS, DecoderLayer, attend
from .transformer import LanceTransformer


class Weights(NamedTuple):
    """Of a layer's understanding expert, cast and on the device. Projections are [out, in]; v, k and q are one.

    `scales` [1, heads of k and q, 1, head_dim / 2, 1, 2] are the norms' weights, laid out like rotation matrices, with
    `ones` [head_dim] in their place. `gate_up` is one projection or two; `negative` is room for `swiglu`, where one
    kernel does it. All layers share it and the ones.
    """

    input_norm: torch.Tensor
    vkq: torch.Tensor
    vkq_bias: torch.Tensor
    scales: torch.Tensor
    o: torch.Tensor
    post_norm: torch.Tensor
    gate_up: tuple[torch.Tensor, ...]
    down: torch.Tensor
    ones: torch.Tensor
    negative: torch.Tensor | None


class Held:
    """The transformer with its understanding expert held ready: `with Held(transformer, device, dtype) as held`."""

    def __init__(self, transformer: LanceTransformer, device: torch.device, dtype: torch.dtype, transformer_options={}):
        self.layers, self.device, self.dtype = transformer.layers, device, dtype
        self.transformer_options = transformer_options

    def __enter__(self) -> Held:
        self._stack, self.weights = ExitStack(), []
        room = comfy.model_management.get_free_memory(self.device) - comfy.model_management.minimum_inference_memory()
        layers = [_modules(layer) for layer in self.layers]
        # Gate and up as one are a launch less. A CPU launches nothing and would copy gigabytes for it.
        launches = not comfy.model_management.is_device_cpu(self.device)
        join = launches and room > sum(_bytes(modules, self.dtype, join=True) for modules in layers)
        shared = self._shared(join)
        for modules in layers:
            room -= _bytes(modules, self.dtype, join)
            held = room > 0 and all(_can_stay(module, self.device) for module in modules)
            self.weights.append(self._hold(modules, join, shared) if held else None)
        scales = [held.scales for held in self.weights if held is not None]
        self.scales = torch.stack(scales) if scales else None
        self.others = [layer.understanding() for layer, held in zip(self.layers, self.weights) if held is None]
        return self

    def __exit__(self, *error) -> None:
        self.weights.clear()
        self.scales = None
        self._stack.close()

    def _shared(self, join: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        attn, mlp = self.layers[0].self_attn, self.layers[0].mlp
        ones = torch.ones(attn.head_dim, device=self.device, dtype=self.dtype)
        # PyTorch's kernel for `swiglu` takes 16 bits on these makers' cards, and is missing on others.
        if not join or not (comfy.model_management.is_nvidia() or comfy.model_management.is_amd()):
            return ones, None
        return ones, torch.zeros(3 * mlp.down_proj.in_features, device=self.device, dtype=self.dtype)

    def _hold(self, modules: list[nn.Module], join: bool, shared: tuple) -> Weights | None:
        """None where ComfyUI has no place for a weight but the one that the next weight takes."""
        with ExitStack() as stack:
            cast = []
            for module in modules:
                weight, bias, stream = comfy.ops.cast_bias_weight(
                    module, dtype=self.dtype, device=self.device, bias_dtype=self.dtype, offloadable=True
                )
                stack.callback(comfy.ops.uncast_bias_weight, module, weight, bias, stream)
                if hasattr(module, "_v") and stream[1] is None:
                    return None
                cast.append((weight, bias))
            self._stack.enter_context(stack.pop_all())
        vkq, vkq_bias = (torch.cat(parts[::-1]) for parts in zip(*cast[1:4]))
        input_norm, q, k, _, q_norm, k_norm, o, post_norm, gate, up, down = (weight for weight, _ in cast)
        scales = torch.cat([norm.expand(len(x) // len(norm), -1) for x, norm in ((k, k_norm), (q, q_norm))])
        scales = scales.float().unflatten(-1, (2, -1)).transpose(1, 2)[None, :, None, :, None]
        gate_up = (torch.cat([gate, up]),) if join else (gate, up)
        return Weights(input_norm, vkq, vkq_bias, scales, o, post_norm, gate_up, down, *shared)

    def read(self, x: torch.Tensor, frequencies: torch.Tensor, cache: list[torch.Tensor], known: int) -> torch.Tensor:
        """Last hidden state [1, 1, hidden] of the token x [1, 1, hidden], which may be written over, and which follows
        the `known` ones in `cache`."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        queue = None
        if self.others:
            queue = make_prefetch_queue(list(self.others), self.device, self.transformer_options)
        others = iter(self.others)
        rotations = iter(() if self.scales is None else frequencies * self.scales)
        for layer, weights, kv in zip(self.layers, self.weights, cache):
            if weights is not None:
                token(x[0], next(rotations), kv, known, weights)
            else:
                prefetch_queue_pop(queue, self.device, next(others))
                x = layer.read(x, frequencies, kv, known, ONE_TOKEN)
        prefetch_queue_pop(queue, self.device, None)
        return x


def _modules(layer: DecoderLayer) -> list[nn.Module]:
    """The understanding expert's, in the order of `Weights`."""
    attn, mlp = layer.self_attn, layer.mlp
    attention = [layer.input_layernorm, attn.q_proj, attn.k_proj, attn.v_proj, attn.q_norm, attn.k_norm, attn.o_proj]
    return [*attention, layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _can_stay(module: nn.Module, device: torch.device) -> bool:
    """Whether a cast weight is all that there is to the module, and has a place of its own on the device."""
    if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        return False
    linear = comfy.ops.disable_weight_init.Linear
    if isinstance(module, linear) and type(module).forward_comfy_cast_weights is not linear.forward_comfy_cast_weights:
        return False  # quantised: it computes with more than its weight
    return hasattr(module, "_v") or module.weight.device == device


def _bytes(modules: list[nn.Module], dtype: torch.dtype, join: bool) -> int:
    """What the cast weights of a layer take beside the weights themselves; `join` is whether gate and up are one."""
    size, joined = comfy.model_management.dtype_size(dtype), modules[1:4] + (modules[8:10] if join else [])
    return sum(m.weight.numel() * size for m in modules if m in joined or m.weight.dtype != dtype or m.weight_function)


def token(x: torch.Tensor, rotation: torch.Tensor, cache: torch.Tensor, known: int, w: Weights) -> None:
    """One layer of one token [1, hidden], written over x. Computes what `DecoderLayer.read` does, with residuals added
    within the products.

    `rotation` is the token's, times `w.scales`, so that all heads of k and q are turned in one call, as if they were
    tokens with one head. The first product writes v, k and q into the cache, whose places behind this token are free: v
    and k lie where they belong, and q is read before the next tokens come there.
    """
    groups, head_dim = cache.shape[2] // 2, cache.shape[3]
    values, keys = cache[:, : known + 1].chunk(2, dim=2)
    vkq = cache.view(-1, head_dim)[known * 2 * groups :][: len(w.vkq) // head_dim]
    normed = F.rms_norm(x, w.input_norm.shape, w.input_norm, RMS_EPS)
    torch.addmm(w.vkq_bias, normed, w.vkq.T, out=vkq.view(1, -1))
    kq = vkq[None, groups:, None]
    ck.rms_rope_split_half1_(kq, rotation, w.ones, RMS_EPS)
    attention = optimized_attention_for_device(x.device, small_input=True)
    x.addmm_(attend(attention, kq[:, groups:].transpose(1, 2), keys, values)[0], w.o.T)
    normed = F.rms_norm(x, w.post_norm.shape, w.post_norm, RMS_EPS)
    if w.negative is not None:
        w.negative[w.down.shape[1] :][None].addmm_(normed, w.gate_up[0].T, beta=0, alpha=-1)
        inner = swiglu(w.negative)[None]
    else:
        gate, up = (part for weight in w.gate_up for part in F.linear(normed, weight).split(w.down.shape[1], dim=-1))
        inner = F.silu(gate).mul_(up)
    x.addmm_(inner, w.down.T)


def swiglu(negative: torch.Tensor) -> torch.Tensor:
    """SiLU(gate) · up [inner] in one kernel, from zeros, -gate and -up behind each other [3 · inner].

    PyTorch has none for that, but one for GLU's derivative, a · σ(b) + c · d · (1 - σ(b)). This is it where a is 0,
    b and d are -gate, and c is -up.
    """
    zero_gate, up = negative.split([len(negative) // 3 * 2, len(negative) // 3])
    return torch.ops.aten.glu_jvp(up, zero_gate, zero_gate, -1)
