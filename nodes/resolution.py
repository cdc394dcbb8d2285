"""The resolutions that nodes offer, and the input at which one is chosen."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ..lance_model import nano
from ..lance_model.resolution import LANCE, PRESETS, Buckets, OwnSize, Square

AUTOMATIC = "automatic"
KEEP = "keep size"
DEMONSTRATION = f"demonstration {nano.SIDE}x{nano.SIDE}"
RESOLUTIONS = {**PRESETS, KEEP: OwnSize(), DEMONSTRATION: nano.RESOLUTION}

TOOLTIP = (
    "The size that the model works in: about as many pixels as the preset, in the nearest of six aspect ratios (the "
    "edges are cropped to it), or the source's own size, cut to multiples of 16. automatic: 768 for pictures and 480p "
    "for clips, or the 64x64 of the demonstration model."
)


def resolution_input(*modalities: str, name: str = "resolution", tooltip: str = TOOLTIP, **settings) -> io.Combo.Input:
    """The choice for `chosen_resolution`: the presets of these modalities, and what fits all."""
    presets = [preset for modality in modalities for preset in PRESETS if preset.startswith(modality)]
    return io.Combo.Input(name, options=[AUTOMATIC, *presets, KEEP, DEMONSTRATION], tooltip=tooltip, **settings)


def seen_inputs() -> list[io.Combo.Input]:
    """The two choices of nodes that look at pictures or clips: `image_resolution` and `video_resolution`."""
    return [
        resolution_input(
            modality,
            name=f"{modality}_resolution",
            tooltip=f"How large {plural} are for the vision encoder.",
            optional=True,
            advanced=True,
        )
        for modality, plural in (("image", "pictures"), ("video", "clips"))
    ]


def chosen_resolution(choice: str, modality: str, connected: object) -> Buckets | Square | OwnSize:
    """The rule behind a choice. `connected` is the CLIP or VAE for which an automatic one is made."""
    trained = getattr(getattr(connected, "cond_stage_model", connected), "trained", LANCE)
    if choice == AUTOMATIC:
        return trained.image if modality == "image" else trained.video
    if (choice == DEMONSTRATION) != (trained is nano.TRAINED) and choice != KEEP:
        logging.warning("%s: this model was not trained in that resolution; automatic takes its own.", choice)
    return RESOLUTIONS[choice]
