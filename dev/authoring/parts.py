"""What the shipped workflows have in common: the note, the loader, and the way from a prompt to a saved result."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

from ..host.workflows import DEMONSTRATION, IMAGE_MODEL, VIDEO_MODEL
from .graph import Graph, Link, Node

REPOSITORY = "https://huggingface.co/bytedance-research/Lance"
MODEL = "demonstration (nano)"  # comes with the plugin, so every workflow runs as it is
SIZE = RESOLUTION = DEMONSTRATION
FRAMES = 9
SEED = 42

SIZES_ON_DISK = {IMAGE_MODEL: "12.4 GB", VIDEO_MODEL: "14.2 GB"}
# What else to choose for Lance itself.
PICTURE, CLIP = ", *image 768x768* as the size", ", *video 480p 848x480* as the size and 49 frames"
EDITED, EDITED_CLIP = ", *image 768* as the resolution", ", *video 480p* as the resolution"
GIVEN_CLIP = ", *video 480p* as the resolution and 49 frames"
SEEN = ", *image 768* as the picture's resolution (advanced)"
SEEN_CLIP = ", *video 480p* as the clip's resolution (advanced)"

# In api/input.
CIRCLE = "lance_circle.png"
CIRCLE_RIGHT = "lance_circle_right.png"
STAR = "lance_star.png"
PAIR = "lance_pair.png"
MASK = "lance_mask.png"
MOVING = "lance_moving.mp4"


def note(g: Graph, title: str, text: str, sizes: str, model: str = IMAGE_MODEL) -> None:
    """What happens, what to change, which model. `text`: two blocks, whose lines go on until a list's next item."""
    about, changes = re.sub(r"(?<!\n)\n(?![-\n])", " ", dedent(text).strip()).split("\n\n")
    g.note(f"## {title}\n{about}\n\n### What to change\n{changes}\n\n{_files(model, sizes)}")


def _files(model: str, sizes: str) -> str:
    """That a demonstration model is at work, and how to use Lance itself."""
    folder, file = model.split("/")
    return f"""### The model
This runs as it is, on the **demonstration model** that comes with the nodes. It is a thousand times smaller than
Lance and knows nothing but coloured shapes at 64 x 64 pixels.

For Lance itself, get from [bytedance-research/Lance]({REPOSITORY}), in the same folders, into **models/lance**:

- **{folder}** / {file} ({SIZES_ON_DISK[model]})
- **Qwen2.5-VL-ViT** / vit.safetensors and config.json (1.3 GB)
- Wan2.2_VAE.pth (2.8 GB), or ComfyUI's own wan2.2_vae.safetensors in **models/vae**

Press **R** and choose **{model}** in *Load Lance*{sizes}.
"""


def load(g: Graph) -> Node:
    return g.add("LanceLoader", model=MODEL)


def decoded(g: Graph, lance: Node, samples: Link) -> Link:
    return g.add("VAEDecode", samples=samples, vae=lance["VAE"])["IMAGE"]


def sampled(g: Graph, lance: Node, prompt: Node, latent: Link) -> Link:
    """KSampler with the model's defaults."""
    sampler = g.add(
        "KSampler",
        model=lance["MODEL"],
        positive=prompt["positive"],
        negative=prompt["negative"],
        latent_image=latent,
        seed=SEED,
        control_after_generate="fixed",
        steps=30,
        cfg=4.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
    return sampler["LATENT"]


def make_picture(g: Graph, name: str, lance: Node, prompt: Node, latent: Link) -> None:
    """The third and fourth column: from the prompt to the picture."""
    g.column("3 · Sampling")
    samples = sampled(g, lance, prompt, latent)
    g.column("4 · Picture")
    g.add("SaveImage", images=decoded(g, lance, samples), filename_prefix=f"lance/{name}")


def make_clip(g: Graph, name: str, lance: Node, prompt: Node, latent: Link, first: int = 3, **clip: Any) -> None:
    """Columns from the `first` on: from the prompt to the clip. `clip`: inputs of Create Video."""
    g.column(f"{first} · Sampling")
    samples = sampled(g, lance, prompt, latent)
    g.column(f"{first + 1} · Clip")
    video = g.add("CreateVideo", images=decoded(g, lance, samples), **{"fps": 12.0, **clip})
    g.add("SaveVideo", video=video["VIDEO"], filename_prefix=f"lance/{name}")
