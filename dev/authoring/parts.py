"""What the shipped workflows have in common: the note, the loader, and the way from a prompt to a saved result."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

from ..host.workflows import IMAGE_MODEL, VIDEO_MODEL
from .graph import Graph, Link, Node

REPOSITORY = "https://huggingface.co/bytedance-research/Lance"
# The page offers these where a loader names one that is not there.
FILES = [
    {"name": name, "url": f"{REPOSITORY}/resolve/main/{name}", "directory": "lance"}
    for name in (IMAGE_MODEL, VIDEO_MODEL)
]


# What all workflows choose: it follows the model, which is the best that there is.
RESOLUTION = "automatic"
FRAMES = 1  # as many as the model is at its best with
MODEL_NOTE = f"""
*automatic* is [Lance]({REPOSITORY}) if you have it, else a tiny **demonstration model** that knows coloured shapes. To
get Lance, choose *download {{}}* in *Load Lance*. Sizes follow the model.
"""

SEED = 42
# In api/input.
CIRCLE = "lance_circle.png"
CIRCLE_RIGHT = "lance_circle_right.png"
STAR = "lance_star.png"
PAIR = "lance_pair.png"
MASK = "lance_mask.png"
MOVING = "lance_moving.mp4"
LONG = "lance_to_and_fro.mp4"


def note(g: Graph, title: str, text: str, clips: bool = False, model_note: str = MODEL_NOTE) -> None:
    """What happens, what to change, which model."""
    model = _joined(model_note).format("Lance_3B_Video" if clips else "Lance_3B")
    g.note("\n\n".join((f"## {title}", _joined(text), f"### The model\n{model}")))


def _joined(text: str) -> str:
    """A block of text whose lines go on until a blank one or a list's next item."""
    return re.sub(r"(?<!\n)\n(?![-\n])", " ", dedent(text).strip())


def load(g: Graph, clips: bool = False) -> Node:
    loader = g.add("LanceLoader", model=f"automatic ({'clips' if clips else 'pictures'})")
    loader.properties["models"] = FILES
    return loader


def empty_latent(g: Graph, lance: Node, clip: bool = False, frames: int = FRAMES, **batch: int) -> Link:
    title = "Clip Size and Length" if clip else "Picture Size"
    size = f"automatic {'clip' if clip else 'picture'}"
    return g.add("EmptyLanceLatent", title, size=size, frames=frames, **batch, model=lance["MODEL"])["LATENT"]


def decoded(g: Graph, lance: Node, samples: Link) -> Link:
    return g.add("VAEDecode", samples=samples, vae=lance["VAE"])["IMAGE"]


def sampled(g: Graph, lance: Node, prompt: Node, latent: Link, model: Link | None = None, **changed: Any) -> Link:
    """KSampler with the model's defaults, but for what is `changed`."""
    settings = {"steps": 30, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    sampler = g.add(
        "KSampler",
        model=model or lance["MODEL"],
        positive=prompt["positive"],
        negative=prompt["negative"],
        latent_image=latent,
        seed=SEED,
        control_after_generate="fixed",
        **(settings | changed),
    )
    return sampler["LATENT"]


def make_picture(g: Graph, title: str, name: str, lance: Node, prompt: Node, latent: Link, **sampling: Any) -> None:
    """From the prompt to the picture, which stands in a column of its own. `sampling`: what KSampler has of its own."""
    samples = sampled(g, lance, prompt, latent, **sampling)
    g.column(title)
    g.add("SaveImage", images=decoded(g, lance, samples), filename_prefix=f"lance/{name}")


def make_edit(g: Graph, title: str, name: str, lance: Node, edit: Node) -> None:
    """The same for an edit, which then lies over its source."""
    samples = sampled(g, lance, edit, edit["latent"])
    g.column(title)
    edited = decoded(g, lance, samples)
    pasted = g.add("LancePasteEdit", edited=edited, latent=edit["latent"], feather=2.0)["IMAGE"]
    g.add("SaveImage", images=pasted, filename_prefix=f"lance/{name}")


def make_clip(g: Graph, title: str, name: str, lance: Node, prompt: Node, latent: Link, **clip: Any) -> None:
    """From the prompt to the clip, which stands in a column of its own. `clip`: inputs of Create Video."""
    samples = sampled(g, lance, prompt, latent)
    g.column(title)
    save_clip(g, name, decoded(g, lance, samples), **clip)


def save_clip(g: Graph, name: str, images: Link, **clip: Any) -> None:
    video = g.add("CreateVideo", images=images, **{"fps": 12.0, **clip})
    g.add("SaveVideo", video=video["VIDEO"], filename_prefix=f"lance/{name}")
