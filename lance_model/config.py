"""Dimensions of a Lance model, read from the shapes of its weights."""

from __future__ import annotations

from dataclasses import dataclass

Shape = tuple[int, ...]

LAYER = "language_model.model.layers.0."
MAX_LAYERS = 256  # a header has room for a million, which would take hours to build


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
        """Reads first dimensions only: the second one of a quantised weight may be packed.

        Raises LookupError where one is missing, ValueError where they fit no Lance.
        """
        head_dim = shapes[LAYER + "self_attn.q_norm.weight"][0]
        config = cls(
            hidden=shapes["language_model.model.norm.weight"][0],
            layers=sum(key.endswith(".self_attn.q_norm.weight") for key in shapes),
            inner=shapes[LAYER + "mlp.gate_proj.weight"][0],
            heads=shapes[LAYER + "self_attn.q_proj.weight"][0] // head_dim,
            kv_heads=shapes[LAYER + "self_attn.k_proj.weight"][0] // head_dim,
            head_dim=head_dim,
            channels=shapes["llm2vae.bias"][0],
        )
        if config.layers > MAX_LAYERS or config.heads % config.kv_heads or config.head_dim % 16 or config.hidden % 2:
            raise ValueError(
                f"{config.layers} layers, {config.heads} heads over {config.kv_heads} of {config.head_dim} numbers, "
                f"{config.hidden} channels"
            )
        return config


@dataclass(frozen=True)
class VisionConfig:
    """Qwen2.5-VL's vision encoder. Heads and full-attention layers are in no shape: they come from its config.json."""

    hidden: int
    layers: int
    inner: int
    out_hidden: int
    heads: int = 16
    full_attention: tuple[int, ...] = (7, 15, 23, 31)

    @classmethod
    def from_shapes(cls, shapes: dict[str, Shape], settings: dict) -> VisionConfig:
        """`settings` is the config.json beside the weights. If it describes another model, the 3B model's values hold.

        Raises LookupError where a shape is missing, TypeError where the settings make no sense.
        """
        hidden = shapes["patch_embed.proj.weight"][0]
        layers = sum(key.startswith("blocks.") and key.endswith(".norm1.weight") for key in shapes)
        if settings.get("depth") != layers:
            settings = {}
        if layers > MAX_LAYERS:
            raise TypeError(f"{layers} layers")
        heads = settings.get("num_heads", cls.heads)
        if heads not in range(1, hidden + 1) or hidden % heads:
            raise TypeError(f"{heads} heads for {hidden} channels")
        return cls(
            hidden=hidden,
            layers=layers,
            inner=shapes["blocks.0.mlp.gate_proj.weight"][0],
            out_hidden=shapes["merger.mlp.2.bias"][0],
            heads=int(heads),
            full_attention=tuple(settings.get("fullatt_block_indexes", cls.full_attention)),
        )
