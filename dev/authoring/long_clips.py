"""The shipped workflows that make long clips: in context windows, and piece by piece."""

from __future__ import annotations

from typing import Any

from .graph import Graph, Link, Node
from .parts import CIRCLE, FRAMES, LONG, RESOLUTION, decoded, empty_latent, load, note, sampled, save_clip

GIVEN = 5  # frames of a clip that its continuation begins with
ALL = 4096  # frames; those that there are
EIGHT_SECONDS = 97  # frames
WHOLE, PIECES = 1024, {"overlap": 64, "temporal_size": 64, "temporal_overlap": 8}  # pixels and frames


def make_long_clip(g: Graph, title: str, name: str, lance: Node, prompt: Node, latent: Link, **clip: Any) -> None:
    """From the prompt to the clip, in windows. Decoded piece by piece, so that a card never holds all frames."""
    windows = g.add("LanceContextWindows", "Context Windows", model=lance["MODEL"], window="automatic")
    g.beside()
    samples = sampled(g, lance, prompt, latent, windows["MODEL"])
    g.column(title)
    images = g.add("VAEDecodeTiled", samples=samples, vae=lance["VAE"], tile_size=WHOLE, **PIECES)
    save_clip(g, name, images["IMAGE"], **clip)


def long_text_to_video(g: Graph) -> None:
    text = """
    A clip of any length in overlapping windows, each no longer than Lance knows. It suits one scene that goes on, as
    every window is asked for the whole prompt.

    - **Prompt**: what goes on all the time, not what happens once.
    - **Frames**: 97 are eight seconds. As many as you like; time grows with them, memory hardly.
    - **Context Windows**: longer windows hold together better, but take longer.
    """
    note(g, "Long text to video", text, clips=True)
    g.box("1 · Model and size")
    lance = load(g, clips=True)
    latent = empty_latent(g, lance, clip=True, frames=EIGHT_SECONDS)
    g.column("2 · Prompt")
    prompt = g.add("LanceEncode", clip=lance["CLIP"], prompt="a green heart grows on a pink background", target="video")
    g.box("3 · Windows and sampling")
    make_long_clip(g, "4 · Clip", "long_text_to_video", lance, prompt, latent)


def long_video_edit(g: Graph) -> None:
    text = """
    Lance changes a clip of up to ten minutes. Each window sees its own part of the clip. The sound is kept.

    - **Clip**, and the same file again in **Load Audio**, which reads the sound alone. For a clip without sound, bypass
      it (Ctrl+B).
    - **Prompt**: what to change.
    - **Context Windows**: longer windows hold together better, but take longer.
    """
    note(g, "Long video edit", text, clips=True)
    g.box("1 · Model and clip")
    lance = load(g, clips=True)
    video = g.add("LoadVideo", file=LONG)
    sound = g.add("LoadAudio", "Sound of the Same Clip", audio=LONG)
    g.column("2 · Instruction")
    edit = g.add(
        "LanceEncodeVideoEdit",
        clip=lance["CLIP"],
        vae=lance["VAE"],
        video=video["VIDEO"],
        prompt="make the circle purple",
        resolution=RESOLUTION,
        max_seconds=600.0,
    )
    g.box("3 · Windows and sampling")
    clip = {"fps": edit["fps"], "audio": sound["AUDIO"]}
    make_long_clip(g, "4 · Clip", "long_video_edit", lance, edit, edit["latent"], **clip)


def continued_clip(g: Graph) -> None:
    text = f"""
    A clip that begins with a picture and goes on twice, each time from the last {GIVEN} frames, which are not repeated.

    - **Picture**: your own.
    - **Prompts**: what happens first, then, and in the end.
    - **Frames** of the continuations count those {GIVEN}.
    """
    note(g, "Continued clip", text, clips=True)
    g.box("1 · Model and picture")
    lance = load(g, clips=True)
    picture = g.add("LoadImage", image=CIRCLE)
    g.column("2 · First")
    pieces = [piece(g, lance, picture["IMAGE"], "a red circle moves right on a green background")]
    for title, then in (("3 · Then", "moves right"), ("4 · In the end", "moves right")):
        g.column(title)
        last = g.add("ImageFromBatch", "Last Frames", image=pieces[-1], batch_index=-GIVEN, length=GIVEN)
        made = piece(g, lance, last["IMAGE"], f"a red circle {then} on a green background")
        new = g.add("ImageFromBatch", "New Frames", image=made, batch_index=GIVEN, length=ALL)
        pieces.append(new["IMAGE"])
    g.column("5 · Clip")
    joined = g.add("BatchImagesNode", **{f"images.image{i}": frames for i, frames in enumerate(pieces)})
    save_clip(g, "continued_clip", joined["IMAGE"])


def piece(g: Graph, lance: Node, start: Link, prompt: str) -> Link:
    """Frames of a clip that begins with the given ones."""
    encoded = g.add("LanceEncode", clip=lance["CLIP"], target="video", prompt=prompt)
    latent = g.add("LanceImageToVideo", vae=lance["VAE"], start=start, resolution=RESOLUTION, frames=FRAMES)
    g.beside()
    return decoded(g, lance, sampled(g, lance, encoded, latent["LATENT"]))


WORKFLOWS = (long_text_to_video, long_video_edit, continued_clip)
