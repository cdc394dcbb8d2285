"""Prompts → CONDITIONING."""

from __future__ import annotations

from comfy_api.latest import io

from ..lance_model import habits, language, tasks
from .progress import tell


def advanced_prompts() -> list[io.Input]:
    """What every encode node offers beside the prompt. Single lines, as the canvas shows advanced inputs always."""
    return [
        io.String.Input(
            "negative_prompt",
            default="",
            optional=True,
            advanced=True,
            tooltip="What to move away from. Lance was trained without; empty is its own unconditional branch.",
        ),
        io.String.Input(
            "system_prompt",
            default="",
            optional=True,
            advanced=True,
            tooltip="In place of the system prompt that Lance was trained with for this task. Empty: that one.",
        ),
    ]


class LanceEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LanceEncode",
            display_name="Lance Encode Prompt",
            category="Lance",
            description="Encodes a prompt for a picture or a clip. The negative side is the model's own unconditional "
            "sequence unless a negative prompt is given.",
            search_aliases=["clip text encode", "prompt", "lance prompt", "text to image", "text to video"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Load Lance."),
                io.Combo.Input("target", options=list(tasks.MODALITIES), tooltip="What the prompt describes."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Long, concrete descriptions work best: Lance was trained on them.",
                ),
                *advanced_prompts(),
            ],
            outputs=[io.Conditioning.Output(display_name="positive"), io.Conditioning.Output(display_name="negative")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, clip, target: str, prompt: str, negative_prompt: str = "", system_prompt: str = ""
    ) -> io.NodeOutput:
        tell(cls, habits.noted(prompt, negative_prompt))
        return io.NodeOutput(
            *language.encode_pair(clip, prompt, negative_prompt, target=target, system=system_prompt.strip() or None)
        )


NODES = [LanceEncode]
