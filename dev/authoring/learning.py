"""The shipped workflows that train a LoRA. A function that is listed in WORKFLOWS is a workflow."""

from __future__ import annotations

from .graph import Graph, Link, Node
from .parts import CHOSEN, CIRCLE, EDITED, PICTURE, load, make_picture, note

LOOK, PAIRS = "lance_look", "lance_pairs"  # folders in api/input
SIDE = 64  # pixels of the pictures in them
PRECISION = (
    "For Lance itself, choose *bf16* as **training_dtype** and switch **gradient_checkpointing** on. "
    "The plugin's *docs/training.md* says how to prepare examples, and which memory that takes."
)


def trained(g: Graph, lance: Node, name: str, latents: Link, positive: Link, steps: int, rate: float):
    """The training, what it leaves and its loss; the loader's outputs with the MODEL that has learnt."""
    g.column("3 · Training")
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
    g.column("4 · LoRA and loss")
    g.add("SaveLoRA", lora=training["lora"], prefix=f"loras/{name}", steps=training["steps"])
    g.add("LossGraphNode", loss=training["loss_map"], filename_prefix=f"lance/{name}_loss")
    g.column("5 · With the LoRA")
    lora = g.add("LoraModelLoader", model=lance["MODEL"], lora=training["lora"], strength_model=1.0, bypass=False)
    return {"MODEL": lora["model"], "VAE": lance["VAE"]}


def train_look(g: Graph) -> None:
    text = f"""
    Lance learns a look, or a thing, from pictures with captions. This takes minutes; the last column tries what it
    has learnt. Then press **R**, and *Load Lance LoRA* offers the LoRA, which is in ComfyUI's *output/loras*.

    - **Folder**: a folder in ComfyUI's *input*, of pictures of one size, each with a text file of its name.
    - **Steps**, **learning rate**: more, or higher, learns more and keeps less. Let **batch_size** be 1.

    {PRECISION}
    """
    note(g, "Train a look", text, PICTURE)
    g.box("1 · Model and pictures")
    lance = load(g)
    pictures = g.add("LoadImageTextDataSetFromFolder", folder=LOOK)
    g.column("2 · Examples")
    examples = g.add(
        "MakeTrainingDataset",
        images=pictures["images"],
        vae=lance["VAE"],
        clip=lance["CLIP"],
        texts=pictures["texts"],
    )
    learnt = trained(g, lance, "lance_look", examples["latents"], examples["conditioning"], 3000, 0.0012)
    prompt = g.add(
        "LanceEncode",
        clip=lance["CLIP"],
        prompt="a cinematic picture of a large yellow star in the middle on a blue background",
        target="image",
    )
    latent = g.add("EmptyLanceLatent", "Picture Size", size=CHOSEN.picture_size)
    make_picture(g, "6 · Picture", "train_look", learnt, prompt, latent["LATENT"])


def train_edit(g: Graph) -> None:
    text = f"""
    Lance learns an edit from pictures before and after, side by side, with the instruction. This takes minutes; the
    last column tries what it has learnt. Then press **R**, and *Load Lance LoRA* offers the LoRA, which is in ComfyUI's
    *output/loras*.

    - **Folder**: a folder in ComfyUI's *input*, of pairs of one size, each with a text file of its name.
    - **Before**, **After**: the halves, in pixels.
    - **Steps**, **learning rate**: more, or higher, learns more and keeps less. Let **batch_size** be 1.

    {PRECISION}
    """
    note(g, "Train an edit", text, EDITED)
    g.box("1 · Model and pairs")
    lance = load(g)
    pairs = g.add("LoadImageTextDataSetFromFolder", folder=PAIRS)
    halves = [
        g.add(
            "ImageCropV2",
            title,
            image=pairs["images"],
            crop_region={"x": x, "y": 0, "width": SIDE, "height": SIDE},
        )
        for title, x in (("Before", 0), ("After", SIDE))
    ]
    g.column("2 · Examples")
    settings = {"clip": lance["CLIP"], "vae": lance["VAE"], "resolution": CHOSEN.resolution}
    before, after = (
        g.add("LanceEncodeEdit", title, image=half["IMAGE"], prompt=pairs["texts"], **settings)
        for title, half in zip(("Lance Encode Image Edit", "The result's latent"), halves)
    )
    learnt = trained(g, lance, "lance_edit", after["latent"], before["positive"], 1300, 0.0008)
    picture = g.add("LoadImage", image=CIRCLE)
    prompt = g.add("LanceEncodeEdit", image=picture["IMAGE"], prompt="make the circle a star", **settings)
    make_picture(g, "6 · Picture", "train_edit", learnt, prompt, prompt["latent"])


WORKFLOWS = (train_look, train_edit)
