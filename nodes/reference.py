"""Subject references: pictures of what is to appear, and a prompt → CONDITIONING."""

from __future__ import annotations

from comfy_api.latest import io

from ..lance_model import habits, language, media, tasks
from ..lance_model.sequence import Label
from .encode import advanced_prompts
from .progress import tell
from .resolution import chosen_resolution, resolution_input


class LanceEncodeReferences(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LanceEncodeReferences",
            display_name="Lance Encode References",
            category="Lance",
            description="Encodes reference pictures and a prompt for a new picture or clip with the same subjects. "
            "Refer to them by their order: the dog from the first picture. "
            "The size of the result is that of the latent.",
            search_aliases=["subject", "ip adapter", "identity", "reference image", "maze"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Load Lance."),
                io.Vae.Input("vae", tooltip="The VAE of Load Lance."),
                io.Autogrow.Input(
                    "images",
                    template=io.Autogrow.TemplatePrefix(io.Image.Input("image"), prefix="image", min=1, max=16),
                    tooltip="The references, in order. A batch counts as several.",
                ),
                io.String.Input(
                    "prompt", multiline=True, dynamic_prompts=True, tooltip="The new scene, with the subjects in it."
                ),
                io.Combo.Input("target", options=list(tasks.MODALITIES), tooltip="What is to be made."),
                resolution_input("image", "video"),
                *advanced_prompts(),
            ],
            outputs=[io.Conditioning.Output(display_name="positive"), io.Conditioning.Output(display_name="negative")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        clip,
        vae,
        images: io.Autogrow.Type,
        prompt: str,
        target: str,
        resolution: str,
        negative_prompt: str = "",
        system_prompt: str = "",
    ) -> io.NodeOutput:
        if not images:
            raise ValueError("There is no reference. Connect at least one picture.")
        tell(cls, habits.noted(prompt, negative_prompt))
        rule = chosen_resolution(resolution, target, clip)
        references = [
            media.preprocess(picture[None], rule, Label.REFERENCE, vae)
            for name, batch in images.items()
            for picture in media.some(batch, name)
        ]
        system = system_prompt.strip() or tasks.SUBJECT[target]
        return io.NodeOutput(
            *language.encode_pair(clip, prompt, negative_prompt, references, target=target, system=system)
        )


NODES = [LanceEncodeReferences]
