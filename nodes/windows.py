"""Context windows as long as the clips that a model was trained on."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode

from ..lance_model import partners
from ..lance_model.diffusion import Lance
from .choice import chosen
from .frames import CHUNK

AUTOMATIC, CUSTOM = "automatic", "custom"


def _automatic(frames: int) -> tuple[int, int]:
    """Frames of a window and of its overlap, for a model that is at its best with so many."""
    return frames, max(1, round(frames / 4 / CHUNK)) * CHUNK


class LanceContextWindows(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LanceContextWindows",
            display_name="Lance Context Windows",
            category="Lance",
            description="For clips longer than Lance was trained on: they are sampled in overlapping windows. "
            "An edit's window sees its own part of the source.",
            search_aliases=["long video", "context windows", "sliding window", "wan context windows"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Load Lance, or of what follows it."),
                io.DynamicCombo.Input(
                    "window",
                    options=[
                        io.DynamicCombo.Option(AUTOMATIC, []),
                        io.DynamicCombo.Option(
                            CUSTOM,
                            [
                                io.Int.Input(
                                    "frames",
                                    default=61,
                                    min=5,
                                    max=1 + 4 * 256,
                                    step=4,
                                    tooltip="Frames of a window, 1 + 4k. Longer ones hold together better, "
                                    "but take more time and memory.",
                                ),
                                io.Int.Input(
                                    "overlap",
                                    default=12,
                                    min=0,
                                    max=4 * 256,
                                    step=4,
                                    tooltip="Frames that a window shares with the one before. "
                                    "More make smoother joints and more windows.",
                                ),
                            ],
                        ),
                    ],
                    tooltip="automatic: windows as long as the clips that the MODEL is at its best with, "
                    "which overlap by a quarter.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, window: dict | None = None) -> io.NodeOutput:
        partners.check(model, "model", Lance, "MODEL")
        window = chosen("window", window, [AUTOMATIC, CUSTOM])
        if window["window"] == AUTOMATIC:
            frames, overlap = _automatic(model.model.trained.frames)
        else:
            frames, overlap = window["frames"], window["overlap"]
        if overlap >= frames:
            raise ValueError(
                f"Windows of {frames} frames cannot overlap by {overlap}. Set overlap to {frames - 1} or less."
            )
        # Windows that stand still: each reads its part of a source once.
        return WanContextWindowsManualNode.execute(
            model, frames, overlap, "standard_static", 1, closed_loop=False, fuse_method="pyramid", freenoise=False
        )


NODES = [LanceContextWindows]
