"""The resolutions that nodes offer, and the input at which one is chosen."""

from __future__ import annotations

from comfy_api.latest import io

from ..lance_model import nano
from ..lance_model.resolution import PRESETS, OwnSize

KEEP = "keep size"
DEMONSTRATION = f"demonstration {nano.SIDE}x{nano.SIDE}"
RESOLUTIONS = {**PRESETS, KEEP: OwnSize(), DEMONSTRATION: nano.RESOLUTION}
DEFAULT = {"image": "image 768", "video": "video 480p"}

TOOLTIP = (
    "The size that the model works in: about as many pixels as the preset, in the nearest of six aspect ratios (the "
    "edges are cropped to it), or the source's own size, cut to multiples of 16. The demonstration model knows 64x64 "
    "alone."
)


def resolution_input(*modalities: str, name: str = "resolution", tooltip: str = TOOLTIP, **settings) -> io.Combo.Input:
    """The choice of a key of RESOLUTIONS: the presets of these modalities, and what fits all."""
    presets = [preset for modality in modalities for preset in PRESETS if preset.startswith(modality)]
    return io.Combo.Input(name, options=[*presets, KEEP, DEMONSTRATION], tooltip=tooltip, **settings)
