"""The shipped workflows that make clips. A function that is listed in WORKFLOWS is a workflow."""

from __future__ import annotations

from .graph import Graph
from .parts import CIRCLE, CIRCLE_RIGHT, FRAMES, MOVING, RESOLUTION, STAR, empty_latent, load, make_clip, note


def text_to_video(g: Graph) -> None:
    text = """
    Lance makes a clip of 12 frames a second from a description. There is no sound.

    - **Prompt**: what is there, how it moves and what the camera does.
    - **Frames**: 1 is as many as the model likes best; 49 are four seconds, 121 the most, at four times the time.
    - **Size**: *video 360p* for a quick look.
    """
    note(g, "Text to video", text, clips=True)
    g.box("1 · Model and size")
    lance = load(g, clips=True)
    latent = empty_latent(g, lance, clip=True)
    g.column("2 · Prompt")
    prompt = g.add(
        "LanceEncode", clip=lance["CLIP"], prompt="a green heart moves up on a pink background", target="video"
    )
    g.box("3 · Sampling")
    make_clip(g, "4 · Clip", "text_to_video", lance, prompt, latent)


def video_edit(g: Graph) -> None:
    text = """
    Lance changes a clip as you tell it, up to six seconds of it. The sound is kept.

    - **Clip**: your own.
    - **Prompt**: what to change.
    - **Resolution**: *video 360p* is much quicker.
    """
    note(g, "Video edit", text, clips=True)
    g.box("1 · Model and clip")
    lance = load(g, clips=True)
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
    g.box("3 · Sampling")
    make_clip(g, "4 · Clip", "video_edit", lance, edit, edit["latent"], fps=edit["fps"], audio=parts["audio"])


def image_to_video(g: Graph) -> None:
    text = """
    A picture becomes the first frame of a clip.

    - **Picture**: your own. Connect the last frames of a clip instead, and it is continued.
    - **Prompt**: what is seen, what moves and how, and what the camera does.
    - **Frames**: 1 is as many as the model likes best; 49 are four seconds, 121 the most.
    """
    note(g, "Image to video", text, clips=True)
    g.box("1 · Model and picture")
    lance = load(g, clips=True)
    picture = g.add("LoadImage", image=CIRCLE)
    g.column("2 · Prompt and frames")
    prompt = g.add(
        "LanceEncode", clip=lance["CLIP"], target="video", prompt="a red circle moves right on a green background"
    )
    latent = g.add(
        "LanceImageToVideo",
        vae=lance["VAE"],
        start=picture["IMAGE"],
        resolution=RESOLUTION,
        frames=FRAMES,
    )
    g.box("3 · Sampling")
    make_clip(g, "4 · Clip", "image_to_video", lance, prompt, latent["LATENT"])


def first_last_frame(g: Graph) -> None:
    text = """
    Lance makes what lies between two pictures; the more alike they are, the better. The last one is held for four
    frames.

    - **Pictures**: your own. The last is cut to the size of the first.
    - **Prompt**: what happens between.
    """
    note(g, "First and last frame", text, clips=True)
    g.box("1 · Model")
    lance = load(g, clips=True)
    g.column("2 · Pictures")
    start = g.add("LoadImage", "First Frame", image=CIRCLE)
    end = g.add("LoadImage", "Last Frame", image=CIRCLE_RIGHT)
    g.column("3 · Prompt and frames")
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
    g.box("4 · Sampling")
    make_clip(g, "5 · Clip", "first_last_frame", lance, prompt, latent["LATENT"])


def subject_video(g: Graph) -> None:
    text = """
    What is in a reference picture appears in a clip.

    - **Reference**: your own picture; connect more and sockets grow. Speak of them as *the first picture* and so on.
    - **Prompt**: the scene and what happens in it.
    """
    note(g, "Subject to video", text, clips=True)
    g.box("1 · Model, reference, size")
    lance = load(g, clips=True)
    reference = g.add("LoadImage", image=STAR)
    latent = empty_latent(g, lance, clip=True)
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
    g.box("3 · Sampling")
    make_clip(g, "4 · Clip", "subject_video", lance, prompt, latent)


def enhanced_text_to_video(g: Graph) -> None:
    text = """
    Lance writes your short idea out as a long description, then makes the clip.

    - **Idea**: a few words.
    - Its **seed**: another number, another description.
    """
    note(g, "Enhanced text to video", text, clips=True)
    g.box("1 · Model and size")
    lance = load(g, clips=True)
    latent = empty_latent(g, lance, clip=True)
    g.column("2 · Idea")
    written = g.add(
        "LanceEnhancePrompt",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        prompt="a red star",
        sampling="on",
        **{"sampling.seed": 0},
    )
    g.add("PreviewAny", "What Lance Wrote", source=written["prompt"])
    g.box("3 · Prompt")
    prompt = g.add("LanceEncode", clip=lance["CLIP"], prompt=written["prompt"], target="video")
    g.column("4 · Sampling")
    make_clip(g, "5 · Clip", "enhanced_text_to_video", lance, prompt, latent)


def caption_to_video(g: Graph) -> None:
    text = """
    Lance describes a picture, makes a prompt of the description, and a clip of the picture.

    - **Picture**: your own.
    """
    note(g, "Picture, caption, clip", text, clips=True)
    g.box("1 · Model and picture")
    lance = load(g, clips=True)
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
    g.beside()
    g.add("PreviewAny", "Caption", source=caption["text"])
    g.box("3 · Prompt")
    written = g.add(
        "LanceEnhancePrompt",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        prompt=caption["text"],
        image=picture["IMAGE"],
        image_resolution=RESOLUTION,
        sampling="on",
        **{"sampling.seed": 0},
    )
    g.beside()
    g.add("PreviewAny", "What Lance Wrote", source=written["prompt"])
    g.column("4 · Conditioning and frames")
    prompt = g.add("LanceEncode", clip=lance["CLIP"], prompt=written["prompt"], target="video")
    latent = g.add(
        "LanceImageToVideo",
        vae=lance["VAE"],
        start=picture["IMAGE"],
        resolution=RESOLUTION,
        frames=FRAMES,
    )
    g.box("5 · Sampling")
    make_clip(g, "6 · Clip", "caption_to_video", lance, prompt, latent["LATENT"])


WORKFLOWS = (
    text_to_video,
    video_edit,
    image_to_video,
    first_last_frame,
    subject_video,
    enhanced_text_to_video,
    caption_to_video,
)
