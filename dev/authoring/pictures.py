"""The shipped workflows that make pictures. A function that is listed in WORKFLOWS is a workflow."""

from __future__ import annotations

from typing import Any

from .graph import Graph
from .parts import (
    CIRCLE,
    MASK,
    PAIR,
    RESOLUTION,
    STAR,
    decoded,
    empty_latent,
    load,
    make_edit,
    make_picture,
    note,
    sampled,
)


def from_text(g: Graph, name: str, prompt: str, **sampling: Any) -> None:
    """All but the note. `sampling`: what KSampler has of its own."""
    g.box("1 · Model and size")
    lance = load(g)
    latent = empty_latent(g, lance)
    g.column("2 · Prompt")
    encoded = g.add("LanceEncode", clip=lance["CLIP"], prompt=prompt, target="image")
    g.box("3 · Sampling")
    make_picture(g, "4 · Picture", name, lance, encoded, latent, **sampling)


def text_to_image(g: Graph) -> None:
    text = """
    Lance draws one picture from a description.

    - **Prompt**: sentences that say what is there, its colours, materials, light and place.
    - **Size**: *automatic*, one of those that Lance knows, or *custom*.
    - **Seed**: another number, another picture.
    """
    note(g, "Text to image", text)
    from_text(
        g, "text_to_image", "a small red circle on the left and a small blue star on the right on a pink background"
    )


def quick_text_to_image(g: Graph) -> None:
    text = """
    One picture from a description in half the passes through the model, or a tenth of them.

    - **Steps** at *euler* and *kl_optimal*: 18 take 27 passes, where 30 at *simple* take 56. 4 take 6: a draft, while
    you look for a prompt and a seed.
    - **Sampler**: with so few steps others than *euler* go wrong here.
    - Any other workflow, edits and clips too: set the same in its *KSampler*.

    All this was measured on the demonstration model. With Lance itself compare a few seeds with 30 steps of *simple*
    first; *dpmpp_2m* with *simple* at 12 steps is what one of its users reports.
    """
    note(g, "Text to image quickly", text)
    prompt = "a small orange star on the left and a small purple circle on the right on a white background"
    from_text(g, "quick_text_to_image", prompt, steps=18, scheduler="kl_optimal")


def image_edit(g: Graph) -> None:
    text = """
    Lance changes a picture as you tell it and keeps the rest. The result has the picture's own size.

    - **Picture**: your own, of any size.
    - **Prompt**: what to change, remove, add or turn into what.
    """
    note(g, "Image edit", text)
    g.box("1 · Model and picture")
    lance = load(g)
    picture = g.add("LoadImage", image=CIRCLE)
    g.column("2 · Instruction")
    edit = g.add(
        "LanceEncodeEdit",
        clip=lance["CLIP"],
        vae=lance["VAE"],
        image=picture["IMAGE"],
        prompt="make the circle blue",
        resolution=RESOLUTION,
    )
    g.box("3 · Sampling")
    make_edit(g, "4 · Picture", "image_edit", lance, edit)


def masked_edit(g: Graph) -> None:
    text = """
    Lance changes only what a mask uncovers; everything else stays exactly as it is. Soft edges blend.

    - **Mask**: white where the picture may change. Or paint one: right-click *Load Image*, *Open in MaskEditor*, and
    connect its MASK.
    - **Prompt**: what to change.
    """
    note(g, "Masked edit", text)
    g.box("1 · Model")
    lance = load(g)
    g.column("2 · Picture and mask")
    picture = g.add("LoadImage", image=PAIR)
    mask = g.add("LoadImageMask", image=MASK, channel="red")
    g.column("3 · Instruction")
    edit = g.add(
        "LanceEncodeEdit",
        clip=lance["CLIP"],
        vae=lance["VAE"],
        image=picture["IMAGE"],
        mask=mask["MASK"],
        prompt="make the square green",
        resolution=RESOLUTION,
    )
    g.box("4 · Sampling")
    make_edit(g, "5 · Picture", "masked_edit", lance, edit)


def multi_turn_edit(g: Graph) -> None:
    text = """
    Each turn edits the result of the one before, and shows it.

    - **Prompts**: one instruction a turn.
    - More turns: copy a box and connect it to the last picture.
    """
    note(g, "Multi-turn edit", text)
    g.box("Model and picture")
    lance = load(g)
    image = g.add("LoadImage", image=CIRCLE)["IMAGE"]
    instructions = ("make the circle purple", "move the circle to the right", "change the background to blue")
    for turn, instruction in enumerate(instructions, 1):
        g.column(f"Turn {turn}")
        edit = g.add(
            "LanceEncodeEdit",
            f"Turn {turn}",
            clip=lance["CLIP"],
            vae=lance["VAE"],
            image=image,
            prompt=instruction,
            resolution=RESOLUTION,
        )
        image = decoded(g, lance, sampled(g, lance, edit, edit["latent"]))
        if turn < len(instructions):
            g.add("PreviewImage", f"After turn {turn}", images=image)
    g.add("SaveImage", images=image, filename_prefix="lance/multi_turn_edit")


def subject_image(g: Graph) -> None:
    text = """
    What is in a reference picture appears in a new one.

    - **Reference**: your own picture; connect more and sockets grow.
    - **Prompt**: the new scene. Call the subject by what it is: *the teapot from the picture*.
    """
    note(g, "Subject to image", text)
    g.box("1 · Model, reference, size")
    lance = load(g)
    reference = g.add("LoadImage", image=STAR)
    latent = empty_latent(g, lance)
    g.column("2 · Prompt")
    prompt = g.add(
        "LanceEncodeReferences",
        clip=lance["CLIP"],
        vae=lance["VAE"],
        **{"images.image0": reference["IMAGE"]},
        prompt="the object from the picture at the top on a green background",
        target="image",
        resolution=RESOLUTION,
    )
    g.box("3 · Sampling")
    make_picture(g, "4 · Picture", "subject_image", lance, prompt, latent)


def best_of_four(g: Graph) -> None:
    text = """
    Four quick tries of a prompt, and the one in which Lance itself finds the prompt best.

    - **Prompt**: written once, for the pictures and for the choice.
    - **Batch size**: how many tries there are. Looking at one takes less time than a sampling step.
    - **Steps** 6: more make each try better.
    - **Index** and the sampler's latent, connected to *Get Latent From Batch*, give the best one's latent.
    """
    note(g, "Best of four", text)
    g.box("1 · Model and size")
    lance = load(g)
    latent = empty_latent(g, lance, batch_size=4)
    g.column("2 · Prompt")
    prompt = g.add(
        "PrimitiveStringMultiline",
        "Prompt",
        value="a small yellow heart on the left and a small green cross on the right on a blue background",
    )
    prompt.labels["value"] = "prompt"
    encoded = g.add("LanceEncode", clip=lance["CLIP"], prompt=prompt["STRING"], target="image")
    g.box("3 · Quick tries")
    pictures = decoded(g, lance, sampled(g, lance, encoded, latent, steps=6))
    g.column("4 · The best one")
    ranked = g.add(
        "LanceRank",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        images=pictures,
        task="caption",
        image_resolution=RESOLUTION,
        **{"task.prompt": prompt["STRING"], "task.style": "accurate"},
    )
    g.add("PreviewImage", "All, Best First", images=ranked["ranked"])
    g.column("5 · Picture")
    g.add("SaveImage", images=ranked["best"], filename_prefix="lance/best_of_four")


WORKFLOWS = (
    text_to_image,
    quick_text_to_image,
    best_of_four,
    image_edit,
    masked_edit,
    multi_turn_edit,
    subject_image,
)
