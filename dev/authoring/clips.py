"""The shipped workflows that make clips. A function that is listed in WORKFLOWS is a workflow."""

from __future__ import annotations

from ..host.workflows import VIDEO_MODEL
from .graph import Graph
from .parts import (
    CIRCLE,
    CIRCLE_RIGHT,
    CLIP,
    EDITED_CLIP,
    FRAMES,
    GIVEN_CLIP,
    MOVING,
    RESOLUTION,
    SIZE,
    STAR,
    load,
    make_clip,
    note,
)


def text_to_video(g: Graph) -> None:
    text = """
    Lance makes a clip of 12 frames a second from a description. There is no sound.

    - **Prompt**: say what is there, how it moves and, to Lance, what the camera does.
    - **Frames**: always 1 + 4k. Lance was trained up to 121, ten seconds.
    - **Size**: take *video 360p* for a quick look. 121 frames at 480p cost four times as much as 49.
    - **Target** must stay *video*: it chooses the instruction that Lance was trained with.
    """
    note(g, "Text to video", text, CLIP, VIDEO_MODEL)
    g.column("1 · Model and size")
    lance = load(g)
    latent = g.add("EmptyLanceLatent", "Clip Size and Length", size=SIZE, frames=FRAMES)
    g.column("2 · Prompt")
    prompt = g.add(
        "LanceEncode", clip=lance["CLIP"], prompt="a green heart moves up on a pink background", target="video"
    )
    make_clip(g, "text_to_video", lance, prompt, latent["LATENT"])


def video_edit(g: Graph) -> None:
    text = """
    Lance changes a clip as you tell it. It sees up to six seconds at 12 frames a second; the result lasts as long as
    the source and keeps its sound.

    - **Clip**: your own.
    - **Prompt**: an instruction.
    - **Resolution**: *video 360p* is much quicker.
    """
    note(g, "Video edit", text, EDITED_CLIP, VIDEO_MODEL)
    g.column("1 · Model and clip")
    lance = load(g)
    video = g.add("LoadVideo", file=MOVING)
    parts = g.add("GetVideoComponents", "Sound of the Source", video=video["VIDEO"])
    g.column("2 · Instruction")
    edit = g.add(
        "LanceEncodeVideoEdit",
        clip=lance["CLIP"],
        vae=lance["VAE"],
        video=video["VIDEO"],
        prompt="make the circle purple",
        resolution=RESOLUTION,
    )
    make_clip(g, "video_edit", lance, edit, edit["latent"], fps=edit["fps"], audio=parts["audio"])


def image_to_video(g: Graph) -> None:
    text = """
    A picture becomes the first frame of a clip.

    - **Start**: your own picture. Connect the last frames of a clip instead, and it is continued.
    - **Prompt**: what happens. Say what is seen, what moves and how, and what the camera does.
    - **Frames**: 49 is four seconds; always 1 + 4k, 121 at most.
    """
    note(g, "Image to video", text, GIVEN_CLIP, VIDEO_MODEL)
    g.column("1 · Model and picture")
    lance = load(g)
    picture = g.add("LoadImage", image=CIRCLE)
    g.column("2 · Prompt and frames")
    prompt = g.add(
        "LanceEncode", clip=lance["CLIP"], target="video", prompt="a red circle moves right on a green background"
    )
    latent = g.add("LanceImageToVideo", vae=lance["VAE"], start=picture["IMAGE"], resolution=RESOLUTION, frames=FRAMES)
    make_clip(g, "image_to_video", lance, prompt, latent["LATENT"])


def first_last_frame(g: Graph) -> None:
    text = """
    Lance makes what lies between two pictures. It was not trained for a given last frame: the closer the two are, the
    better. The last picture is held for the clip's last four frames.

    - **Start** and **end**: your own pictures. The end is cut to the size of the start.
    - **Prompt**: what happens between.
    """
    note(g, "First and last frame", text, GIVEN_CLIP, VIDEO_MODEL)
    g.column("1 · Model and pictures")
    lance = load(g)
    start = g.add("LoadImage", "First Frame", image=CIRCLE)
    end = g.add("LoadImage", "Last Frame", image=CIRCLE_RIGHT)
    g.column("2 · Prompt and frames")
    prompt = g.add(
        "LanceEncode", clip=lance["CLIP"], target="video", prompt="a red circle moves right on a green background"
    )
    latent = g.add(
        "LanceImageToVideo",
        vae=lance["VAE"],
        start=start["IMAGE"],
        end=end["IMAGE"],
        resolution=RESOLUTION,
        frames=FRAMES,
    )
    make_clip(g, "first_last_frame", lance, prompt, latent["LATENT"])


def subject_video(g: Graph) -> None:
    text = """
    What is in a reference picture appears in a clip.

    - **Reference**: your own picture; connect more and sockets grow. Speak of them as *the first picture* and so on.
    - **Prompt**: the scene and what happens in it.
    - For the maze and other puzzles of the paper, give a *system prompt* of your own (advanced).
    """
    note(g, "Subject to video", text, CLIP, VIDEO_MODEL)
    g.column("1 · Model, reference, size")
    lance = load(g)
    reference = g.add("LoadImage", image=STAR)
    latent = g.add("EmptyLanceLatent", "Clip Size and Length", size=SIZE, frames=FRAMES)
    g.column("2 · Prompt")
    prompt = g.add(
        "LanceEncodeReferences",
        clip=lance["CLIP"],
        vae=lance["VAE"],
        **{"images.image0": reference["IMAGE"]},
        prompt="the object from the picture moves right on a pink background",
        target="video",
        resolution=RESOLUTION,
    )
    make_clip(g, "subject_video", lance, prompt, latent["LATENT"])


def enhanced_text_to_video(g: Graph) -> None:
    text = """
    Lance first writes your short idea out as the long description that it was trained on, then makes the clip.

    - **Prompt**: a short idea.
    - **Sampling** and **seed** of the rewriting: another number, another description.
    """
    note(g, "Enhanced text to video", text, CLIP, VIDEO_MODEL)
    g.column("1 · Model and size")
    lance = load(g)
    latent = g.add("EmptyLanceLatent", "Clip Size and Length", size=SIZE, frames=FRAMES)
    g.column("2 · Idea")
    written = g.add("LanceEnhancePrompt", model=lance["MODEL"], clip=lance["CLIP"], prompt="a red star", sampling="on")
    g.add("PreviewAny", "What Lance Wrote", source=written["prompt"])
    g.column("3 · Prompt")
    prompt = g.add("LanceEncode", clip=lance["CLIP"], prompt=written["prompt"], target="video")
    make_clip(g, "enhanced_text_to_video", lance, prompt, latent["LATENT"], first=4)


def caption_to_video(g: Graph) -> None:
    text = """
    Lance describes a picture, writes the description out as a prompt for a clip, and makes the clip from the picture.

    - **Picture**: your own.
    - **Instruction** (advanced): how the description is turned into a prompt.
    """
    note(g, "Picture, caption, clip", text, GIVEN_CLIP, VIDEO_MODEL)
    g.column("1 · Model and picture")
    lance = load(g)
    picture = g.add("LoadImage", image=CIRCLE)
    g.column("2 · Caption")
    caption = g.add(
        "LanceAnswer",
        "Lance Caption",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        task="caption",
        image_resolution=RESOLUTION,
        **{"task.style": "accurate", "images.image0": picture["IMAGE"]},
    )
    g.add("PreviewAny", "Caption", source=caption["text"])
    g.column("3 · Prompt")
    written = g.add(
        "LanceEnhancePrompt",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        prompt=caption["text"],
        image=picture["IMAGE"],
        image_resolution=RESOLUTION,
        sampling="on",
    )
    g.add("PreviewAny", "What Lance Wrote", source=written["prompt"])
    g.column("4 · Conditioning and frames")
    prompt = g.add("LanceEncode", clip=lance["CLIP"], prompt=written["prompt"], target="video")
    latent = g.add("LanceImageToVideo", vae=lance["VAE"], start=picture["IMAGE"], resolution=RESOLUTION, frames=FRAMES)
    make_clip(g, "caption_to_video", lance, prompt, latent["LATENT"], first=5)


WORKFLOWS = (
    text_to_video,
    video_edit,
    image_to_video,
    first_last_frame,
    subject_video,
    enhanced_text_to_video,
    caption_to_video,
)
