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
from .streaming import KeyValue, KeyValues
from .transformer import LanceTransformer


class Weights(NamedTuple):
    """Of a layer's understanding expert, cast and on the device. Projections are [out, in]; q, k and v are one."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor
    q_norm: torch.Tensor
    k_norm: torch.Tensor
    o: torch.Tensor
    post_norm: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


class Held:
    """The transformer with its understanding expert held ready: `with Held(transformer, device, dtype) as held`."""

    def __init__(self, transformer: LanceTransformer, device: torch.device, dtype: torch.dtype, transformer_options={}):
        self.layers, self.device, self.dtype = transformer.layers, device, dtype
        self.transformer_options = transformer_options

    def __enter__(self) -> Held:
        self._stack, self.weights = ExitStack(), []
        room = comfy.model_management.get_free_memory(self.device) - comfy.model_management.minimum_inference_memory()
        for layer in self.layers:
            modules = _modules(layer)
            room -= _bytes(modules, self.dtype)
            held = room > 0 and all(_can_stay(module, self.device) for module in modules)
            self.weights.append(self._hold(modules) if held else None)
        self.others = [layer.understanding() for layer, held in zip(self.layers, self.weights) if held is None]
        return self

    def __exit__(self, *error) -> None:
        self.weights.clear()
        self._stack.close()

    def _hold(self, modules: list[nn.Module]) -> Weights | None:
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
        norm, q, k, v, *others = cast
        qkv, qkv_bias = (torch.cat(parts) for parts in zip(q, k, v))
        return Weights(norm[0], qkv, qkv_bias, *(weight for weight, _ in others))

    def read(self, x: torch.Tensor, frequencies: torch.Tensor, cache: KeyValues, known: int) -> torch.Tensor:
        """Last hidden state [1, 1, hidden] of the token x [1, 1, hidden] that follows the `known` ones in `cache`."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        queue = None
        if self.others:
            queue = make_prefetch_queue(list(self.others), self.device, self.transformer_options)
        others = iter(self.others)
        for layer, weights, kv in zip(self.layers, self.weights, cache):
            if weights is not None:
                x = token(x, frequencies, kv, known, weights)
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


def _bytes(modules: list[nn.Module], dtype: torch.dtype) -> int:
    """What the cast weights of a layer take beside the weights themselves."""
    size, joined = comfy.model_management.dtype_size(dtype), modules[1:4]
    return sum(m.weight.numel() * size for m in modules if m in joined or m.weight.dtype != dtype or m.weight_function)


def token(x: torch.Tensor, frequencies: torch.Tensor, cache: KeyValue, known: int, w: Weights) -> torch.Tensor:
    """One layer of one token [1, 1, hidden]. Computes what `DecoderLayer.read` does, residuals within the products."""
    keys, values = cache
    groups, head_dim = keys.shape[2:]
    normed = F.rms_norm(x, w.input_norm.shape, w.input_norm, RMS_EPS)
    qkv = F.linear(normed, w.qkv, w.qkv_bias).unflatten(-1, (-1, head_dim))
    q, k, v = qkv.split([qkv.shape[2] - 2 * groups, groups, groups], dim=2)
    q, k = ck.rms_rope_split_half(q, k, frequencies, w.q_norm, w.k_norm, RMS_EPS)
    keys[:, known], values[:, known] = k[:, 0], v[:, 0]
    attention = optimized_attention_for_device(x.device, small_input=True)
    out = attend(attention, q, keys[:, : known + 1], values[:, : known + 1])
    x = torch.addmm(x[0], out[0], w.o.T)
    normed = F.rms_norm(x, w.post_norm.shape, w.post_norm, RMS_EPS)
    inner = F.silu(F.linear(normed, w.gate)).mul_(F.linear(normed, w.up))
    return torch.addmm(x, inner, w.down.T)[None]
