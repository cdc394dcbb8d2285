"""Dimensions of a Lance model, read from the shapes of its weights."""

from __future__ import annotations

from dataclasses import dataclass, field

Shape = tuple[int, ...]

LAYER = "language_model.model.layers.{}."


@dataclass(frozen=True)
class TransformerConfig:
    hidden: int
    layers: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    channels: int = 48

    @classmethod
    def from_shapes(cls, shapes: dict[str, Shape]) -> TransformerConfig:
        """Reads first dimensions only: the second one of a quantised weight may be packed."""
        first = LAYER.format(0)
        head_dim = shapes[first + "self_attn.q_norm.weight"][0]
        layers = 0
        while LAYER.format(layers) + "self_attn.q_norm.weight" in shapes:
            layers += 1
        return cls(
            hidden=shapes["language_model.model.norm.weight"][0],
            layers=layers,
            inner=shapes[first + "mlp.gate_proj.weight"][0],
            heads=shapes[first + "self_attn.q_proj.weight"][0] // head_dim,
            kv_heads=shapes[first + "self_attn.k_proj.weight"][0] // head_dim,
            head_dim=head_dim,
            channels=shapes["llm2vae.weight"][0],
        )


@dataclass(frozen=True)
class VisionConfig:
    """Qwen2.5-VL's vision encoder. Heads and full-attention layers are in no shape: they come from its config.json."""

    hidden: int
    layers: int
    inner: int
    out_hidden: int
    heads: int = 16
    full_attention: tuple[int, ...] = field(default=(7, 15, 23, 31))

    @classmethod
    def from_shapes(cls, shapes: dict[str, Shape], settings: dict | None = None) -> VisionConfig:
        """`settings` is the encoder's config.json, where there is one; without it the 3B model's values hold."""
        settings = settings or {}
        layers = 0
        while f"blocks.{layers}.norm1.weight" in shapes:
            layers += 1
        return cls(
            hidden=shapes["patch_embed.proj.weight"][0],
            layers=layers,
            inner=shapes["blocks.0.mlp.gate_proj.weight"][0],
            out_hidden=shapes["merger.mlp.2.weight"][0],
            heads=settings.get("num_heads", cls.heads),
            full_attention=tuple(settings.get("fullatt_block_indexes", (7, 15, 23, 31))),
        )
