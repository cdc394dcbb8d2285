"""What the shipped workflows have in common: the note, the loader, and the way from a prompt to a saved result."""

from __future__ import annotations

import re
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

from ..host.workflows import DEMONSTRATION, IMAGE_MODEL, VIDEO_MODEL
from .graph import Graph, Link, Node

REPOSITORY = "https://huggingface.co/bytedance-research/Lance"
# The page offers these where a loader names one that is not there.
FILES = [
    {"name": name, "url": f"{REPOSITORY}/resolve/main/{name}", "directory": "lance"}
    for name in (IMAGE_MODEL, VIDEO_MODEL)
]


@dataclass(frozen=True)
class Choices:
    """What all workflows choose, and what the note says of it. `{}` in `model_note`: the model, what else to choose."""

    picture_model: str
    clip_model: str
    picture_size: str
    clip_size: str
    resolution: str
    frames: int
    long: int  # frames of a long clip, in windows of
    window: int
    overlap: int
    model_note: str


ON_DEMONSTRATION = Choices(
    picture_model="demonstration (nano)",  # comes with the plugin, so every workflow runs as it is
    clip_model="demonstration (nano)",
    picture_size=DEMONSTRATION,
    clip_size=DEMONSTRATION,
    resolution=DEMONSTRATION,
    frames=9,
    long=25,
    window=5,
    overlap=4,
    model_note=f"""
    This runs as it is, on a tiny **demonstration model** that knows coloured shapes. For [Lance]({REPOSITORY}) itself,
    get its files (the plugin's README says which), press **R**, and choose *{{}}* in *Load Lance*{{}}.
    """,
)
AUTOMATIC = Choices(
    picture_model="automatic (pictures)",
    clip_model="automatic (clips)",
    picture_size="automatic picture",
    clip_size="automatic clip",
    resolution="automatic",
    frames=1,  # as many as the model is at its best with
    long=241,  # these are for Lance itself
    window=61,
    overlap=12,
    model_note=f"""
    *automatic* is [Lance]({REPOSITORY}) if you have it, else a tiny **demonstration model** that knows coloured shapes.
    To get Lance, choose a *download* in *Load Lance*.
    """,
)
CHOSEN = ON_DEMONSTRATION
# What else to choose for Lance itself.
PICTURE, CLIP = ", *image 768x768* as the size", ", *video 480p 848x480* as the size and 49 frames"
EDITED, EDITED_CLIP = ", *image 768* as the resolution", ", *video 480p* as the resolution"
GIVEN_CLIP = ", *video 480p* as the resolution and 49 frames"
SEEN = ", *image 768* as the picture's resolution (advanced)"
SEEN_CLIP = ", *video 480p* as the clip's resolution (advanced)"
REFERRED = ", *image 768x768* as the size and *image 768* as the resolution"
REFERRED_CLIP = ", *video 480p 848x480* as the size, *image 768* as the resolution and 49 frames"
SEEN_AND_GIVEN = ", *video 480p* as the resolution, *image 768* as the pictures' (advanced) and 49 frames"

SEED = 42
# In api/input.
CIRCLE = "lance_circle.png"
CIRCLE_RIGHT = "lance_circle_right.png"
STAR = "lance_star.png"
PAIR = "lance_pair.png"
MASK = "lance_mask.png"
MOVING = "lance_moving.mp4"
LONG = "lance_to_and_fro.mp4"


def note(g: Graph, title: str, text: str, sizes: str, model: str = IMAGE_MODEL) -> None:
    """What happens, what to change, which model."""
    blocks = (f"## {title}", _joined(text), f"### The model\n{_joined(CHOSEN.model_note).format(model, sizes)}")
    g.note("\n\n".join(blocks))


def _joined(text: str) -> str:
    """A block of text whose lines go on until a blank one or a list's next item."""
    return re.sub(r"(?<!\n)\n(?![-\n])", " ", dedent(text).strip())


def load(g: Graph, clips: bool = False) -> Node:
    loader = g.add("LanceLoader", model=CHOSEN.clip_model if clips else CHOSEN.picture_model)
    loader.properties["models"] = FILES
    return loader


def empty_latent(g: Graph, lance: Node, clip: bool = False) -> Link:
    sizes = {"size": CHOSEN.clip_size, "frames": CHOSEN.frames} if clip else {"size": CHOSEN.picture_size}
    model = {"model": lance["MODEL"]} if CHOSEN is AUTOMATIC else {}
    return g.add("EmptyLanceLatent", "Clip Size and Length" if clip else "Picture Size", **sizes, **model)["LATENT"]


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


def make_clip(g: Graph, title: str, name: str, lance: Node, prompt: Node, latent: Link, **clip: Any) -> None:
    """From the prompt to the clip, which stands in a column of its own. `clip`: inputs of Create Video."""
    samples = sampled(g, lance, prompt, latent)
    g.column(title)
    save_clip(g, name, decoded(g, lance, samples), **clip)


def save_clip(g: Graph, name: str, images: Link, **clip: Any) -> None:
    video = g.add("CreateVideo", images=images, **{"fps": 12.0, **clip})
    g.add("SaveVideo", video=video["VIDEO"], filename_prefix=f"lance/{name}")
