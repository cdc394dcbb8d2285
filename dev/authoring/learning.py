"""The shipped workflows that train a LoRA. A function that is listed in WORKFLOWS is a workflow."""

from __future__ import annotations

from .graph import Graph, Link, Node
from .parts import CIRCLE, FILES, REPOSITORY, RESOLUTION, empty_latent, make_edit, make_picture, note, sampled

LOOK, PAIRS, KNOWN = "lance_look", "lance_pairs", "lance_known_edits"  # folders in api/input
SIDE = 64  # pixels of the pictures in them
IN_WORDS = "a cinematic picture of"
# The examples are the demonstration model's, so an automatic choice would train Lance on pictures of 64x64.
MODEL_NOTE = f"""
As it is, this trains a tiny **demonstration model** on coloured shapes. For [Lance]({REPOSITORY}) itself, choose
*automatic (pictures)* in *Load Lance*, your **folder**, *bf16* as **training_dtype**, and switch
**gradient_checkpointing** on. The plugin's *docs/training.md* says how to prepare examples, and which memory it takes.
"""


def load(g: Graph) -> Node:
    loader = g.add("LanceLoader", model="demonstration (nano)")
    loader.properties["models"] = FILES
    return loader


def both(g: Graph, first: Link, second: Link) -> Link:
    """Two lists as one."""
    return g.add("CreateList", **{"inputs.input0": first, "inputs.input1": second})["list"]


def trained(g: Graph, lance: Node, name: str, latents: Link, positive: Link, steps: int, rate: float):
    """The training, what it leaves and its loss; the loader's outputs with the MODEL that has learnt."""
    g.column("4 · Training")
    training = g.add(
        "TrainLoraNode",
        model=lance["MODEL"],
        latents=latents,
        positive=positive,
        batch_size=1,
        grad_accumulation_steps=1,
        steps=steps,
        learning_rate=rate,
        rank=4,
        optimizer="AdamW",
        loss_function="MSE",
        seed=0,
        control_after_generate="fixed",
        training_dtype="fp32",
        lora_dtype="fp32",
        quantized_backward=False,
        algorithm="LoRA",
        gradient_checkpointing=False,
        checkpoint_depth=5,
        offloading=False,
        existing_lora="[None]",
        bucket_mode=False,
        bypass_mode=True,
    )
    g.column("5 · LoRA and loss")
    g.add("SaveLoRA", lora=training["lora"], prefix=f"loras/{name}", steps=training["steps"])
    g.add("LossGraphNode", loss=training["loss_map"], filename_prefix=f"lance/{name}_loss")
    g.column("6 · With the LoRA")
    lora = g.add("LoraModelLoader", model=lance["MODEL"], lora=training["lora"], strength_model=1.0, bypass=False)
    return {"MODEL": lora["model"], "VAE": lance["VAE"]}


def train_look(g: Graph) -> None:
    text = """
    Lance learns a look from pictures with captions. This takes minutes; the last column tries what it has learnt. Then
    press **R**, and *Load Lance LoRA* offers the LoRA, which is in ComfyUI's *output/loras*.

    - **Folder**: a folder in ComfyUI's *input*, of pictures of one size, each with its caption, without the look, in a
    text file of its name.
    - **The look in words** goes before each caption, and before your prompts later.
    - **Drawn by Lance itself**: pictures of the captions as they are, so that it keeps what it knows.
    - **Steps**, **learning rate**: more, or higher, learns more and keeps less. Let **batch_size** be 1.
    """
    note(g, "Train a look", text, model_note=MODEL_NOTE)
    g.box("1 · Model and pictures")
    lance = load(g)
    pictures = g.add("LoadImageTextDataSetFromFolder", folder=LOOK)
    g.column("2 · With the look")
    captions = g.add(
        "StringConcatenate", "The look in words", string_a=IN_WORDS, string_b=pictures["texts"], delimiter=" "
    )
    shown = g.add(
        "MakeTrainingDataset",
        images=pictures["images"],
        vae=lance["VAE"],
        clip=lance["CLIP"],
        texts=captions["STRING"],
    )
    g.column("3 · Without, drawn by Lance itself")
    plain = g.add("LanceEncode", clip=lance["CLIP"], prompt=pictures["texts"], target="image")
    own = sampled(g, lance, plain, shown["latents"])  # of which at full noise only the size is left
    latents, positive = both(g, shown["latents"], own), both(g, shown["conditioning"], plain["positive"])
    learnt = trained(g, lance, "lance_look", latents, positive, 2400, 0.0006)
    prompt = g.add(
        "LanceEncode",
        clip=lance["CLIP"],
        prompt=f"{IN_WORDS} a large yellow star in the middle on a blue background",
        target="image",
    )
    make_picture(g, "7 · Picture", "train_look", learnt, prompt, empty_latent(g, lance))


def train_edit(g: Graph) -> None:
    text = """
    Lance learns an edit from pictures before and after, side by side, with the instruction. This takes minutes; the
    last column tries what it has learnt. Then press **R**, and *Load Lance LoRA* offers the LoRA, which is in ComfyUI's
    *output/loras*.

    - **Pairs**: a folder in ComfyUI's *input*, of pairs of one size, each with a text file of its name.
    - **Before**, **After**: the halves, in pixels.
    - **Known edits**: pictures with instructions that Lance can follow already. It makes the results itself, so that it
    keeps what it knows.
    - **Steps**, **learning rate**: more, or higher, learns more and keeps less. Let **batch_size** be 1.
    """
    note(g, "Train an edit", text, model_note=MODEL_NOTE)
    g.box("1 · Model and examples")
    lance = load(g)
    pairs = g.add("LoadImageTextDataSetFromFolder", "Pairs", folder=PAIRS)
    known = g.add("LoadImageTextDataSetFromFolder", "Known edits", folder=KNOWN)
    halves = [
        g.add(
            "ImageCropV2",
            title,
            image=pairs["images"],
            crop_region={"x": x, "y": 0, "width": SIDE, "height": SIDE},
        )
        for title, x in (("Before", 0), ("After", SIDE))
    ]
    g.column("2 · The new edit")
    settings = {"clip": lance["CLIP"], "vae": lance["VAE"], "resolution": RESOLUTION}
    before, after = (
        g.add("LanceEncodeEdit", title, image=half["IMAGE"], prompt=pairs["texts"], **settings)
        for title, half in zip(("Lance Encode Image Edit", "The result's latent"), halves)
    )
    g.column("3 · Known edits, made by Lance itself")
    asked = g.add("LanceEncodeEdit", image=known["images"], prompt=known["texts"], **settings)
    own = sampled(g, lance, asked, asked["latent"])
    latents, positive = both(g, after["latent"], own), both(g, before["positive"], asked["positive"])
    learnt = trained(g, lance, "lance_edit", latents, positive, 1300, 0.0008)
    picture = g.add("LoadImage", image=CIRCLE)
    prompt = g.add("LanceEncodeEdit", image=picture["IMAGE"], prompt="make the circle a star", **settings)
    make_edit(g, "7 · Picture", "train_edit", learnt, prompt)


WORKFLOWS = (train_look, train_edit)
