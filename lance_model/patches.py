"""Patches that nodes hang on a model's attention, called as ComfyUI's own transformers call theirs.

They see the target's tokens, two brackets and then the latents (`img_slice`), of all branches that go through the model
together; keys and values of the context are computed once a run, before them.

- `attn1_patch` changes queries, keys and values, which already stand at their rotary positions (`pe` is None).
- `attn1_output_patch` changes what attention gives.
- A replacement of attention in a UNet's middle block (perturbed attention) stands for the target's attention in the
  middle layer.

What nothing here would call is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch

CALLED = ("attn1_patch", "attn1_output_patch")
MIDDLE = ("middle", 0)  # perturbed attention's block
TOGETHER = "lance_together"  # in a conditioning: its branches are to go through the model together

Parts = tuple[torch.Tensor, ...]  # keys and values of brackets, then of latents, each [B, n, kv_heads, head_dim]


def _patches(options: dict, name: str) -> list[Callable]:
    return options.get("patches", {}).get(name, [])


def _replacements(options: dict, name: str) -> dict:
    return options.get("patches_replace", {}).get(name, {})


def present(options: dict) -> bool:
    return any(_patches(options, name) for name in CALLED) or MIDDLE in _replacements(options, "attn1")


def compare_branches(options: dict) -> bool:
    """Whether a patch, such as normalised attention guidance, works on both branches at once."""
    return bool(_patches(options, "attn1_output_patch"))


def _takes_masks(patch: Callable) -> bool:
    """Whether a patch is called as transformers' are; a UNet's takes q, k, v and extra_options alone."""
    parameters = inspect.signature(patch).parameters.values()
    return any(p.name == "attn_mask" or p.kind == p.VAR_KEYWORD for p in parameters)


def check(options: dict, layers: int) -> None:
    """Raises ValueError for patches and replacements that are made for other models."""
    foreign = {name for name, its in options.get("patches", {}).items() if its and name not in CALLED}
    foreign |= {"attn1_patch" for patch in _patches(options, "attn1_patch") if not _takes_masks(patch)}
    foreign |= {f"attn1 {key}" for key in _replacements(options, "attn1") if key != MIDDLE}
    foreign |= {f"attn2 {key}" for key in _replacements(options, "attn2")}
    if foreign:
        raise ValueError(
            f"A node patches the model in a place that other models have and Lance does not ({min(foreign)}). "
            "Take it out."
        )
    scaled = options.get("rope_options", {}).items()
    if any(value != float(name.startswith("scale")) for name, value in scaled):
        raise ValueError("Lance's positions cannot be scaled or shifted. Take ScaleROPE out.")
    blocks = _replacements(options, "dit")
    if blocks and not any(("double_block", i) in blocks for i in range(layers)):
        raise ValueError(
            "A node skips or replaces layers that this Lance does not have. Its layers are double_layers 0 to "
            f"{layers - 1}."
        )


class AttentionPatches:
    """The patches of one layer's attention. Queries are [B, n, heads, head_dim]."""

    def __init__(self, options: dict, brackets: int, latents: int):
        self.extra = options | {"img_slice": [brackets, brackets + latents]}
        middle = options["block_index"] == options["total_blocks"] // 2
        self.replacement = _replacements(options, "attn1").get(MIDDLE) if middle else None

    @classmethod
    def of(cls, options: dict, brackets: int, latents: int) -> AttentionPatches | None:
        return cls(options, brackets, latents) if present(options) else None

    def inputs(self, queries: torch.Tensor, parts: Parts) -> tuple[torch.Tensor, Parts]:
        """What the patches, which take tokens in the last dimension but one, leave of them."""
        called = _patches(self.extra, "attn1_patch")
        if not called:
            return queries, parts
        q, k, v = (x.transpose(1, 2) for x in (queries, *_joined(parts)))
        for patch in called:
            out = patch(q, k, v, pe=None, attn_mask=None, extra_options=self.extra)
            if out.get("attn_mask") is not None:
                raise ValueError("A node masks the model's attention, which Lance cannot do. Take it out.")
            q, k, v = out.get("q", q), out.get("k", k), out.get("v", v)
        (ku, kg), (vu, vg) = (x.transpose(1, 2).tensor_split(self.extra["img_slice"][:1], dim=1) for x in (k, v))
        return q.transpose(1, 2), (ku, vu, kg, vg)

    def instead(self, queries: torch.Tensor, parts: Parts) -> torch.Tensor:
        """What the replacement makes of the target's tokens, [B, n, heads · head_dim]."""
        heads = queries.shape[2]
        k, v = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in _joined(parts))
        return self.replacement(*(x.flatten(2) for x in (queries, k, v)), self.extra)

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """Of attention's result [B, n, heads · head_dim]."""
        for patch in _patches(self.extra, "attn1_output_patch"):
            attended = patch(attended, self.extra)
        return attended


def _joined(parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat(parts[::2], dim=1), torch.cat(parts[1::2], dim=1)
