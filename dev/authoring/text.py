"""The shipped workflows that answer in words. A function that is listed in WORKFLOWS is a workflow."""

from __future__ import annotations

from ..host.workflows import VIDEO_MODEL
from .graph import Graph
from .parts import MOVING, PAIR, RESOLUTION, SEEN, SEEN_CLIP, load, note


def image_question(g: Graph) -> None:
    text = """
    Lance looks at a picture and answers.

    - **Question**: anything. Connect more pictures and ask about all of them.
    - **Sampling** *on* if an answer stops at once or repeats itself.
    """
    note(g, "Ask about a picture", text, SEEN)
    g.column("1 · Model and picture")
    lance = load(g)
    picture = g.add("LoadImage", image=PAIR)
    g.column("2 · Question")
    answer = g.add(
        "LanceAnswer",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        task="question",
        image_resolution=RESOLUTION,
        **{"task.question": "Where is the orange square?", "images.image0": picture["IMAGE"]},
    )
    g.column("3 · Answer")
    g.add("PreviewAny", "Answer", source=answer["text"])


def video_question(g: Graph) -> None:
    text = """
    Lance watches up to six seconds of a clip and answers.

    - **Question**: what happens, in which order, in which direction.
    """
    note(g, "Ask about a clip", text, SEEN_CLIP, VIDEO_MODEL)
    g.column("1 · Model and clip")
    lance = load(g)
    video = g.add("LoadVideo", file=MOVING)
    g.column("2 · Question")
    answer = g.add(
        "LanceAnswer",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        task="question",
        video_resolution=RESOLUTION,
        video=video["VIDEO"],
        **{"task.question": "What does the circle do?"},
    )
    g.column("3 · Answer")
    g.add("PreviewAny", "Answer", source=answer["text"])


def caption(g: Graph) -> None:
    text = """
    Lance describes a picture, for a dataset or as a prompt.

    - **Style**: the instructions for captions that Lance was trained with.
    - A clip can be connected in place of the picture.
    """
    note(g, "Caption", text, SEEN)
    g.column("1 · Model and picture")
    lance = load(g)
    picture = g.add("LoadImage", image=PAIR)
    g.column("2 · Caption")
    answer = g.add(
        "LanceAnswer",
        "Lance Caption",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        task="caption",
        image_resolution=RESOLUTION,
        **{"task.style": "accurate", "images.image0": picture["IMAGE"]},
    )
    g.column("3 · Text")
    g.add("PreviewAny", "Caption", source=answer["text"])


def caption_dataset(g: Graph) -> None:
    text = """
    Every picture of a folder gets a caption. Pictures, numbered anew, and text files of the same names are written side
    by side; to keep names, see *clients* in the plugin's folder.

    - **Folder**: a folder in ComfyUI's *input*.
    - **Folder name**: where the pairs go, in ComfyUI's *output*.
    """
    note(g, "Caption a folder", text, SEEN)
    g.column("1 · Model and folder")
    lance = load(g)
    pictures = g.add("LoadImageDataSetFromFolder", folder="lance_dataset")
    g.column("2 · Captions")
    answer = g.add(
        "LanceAnswer",
        "Lance Caption",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        task="caption",
        image_resolution=RESOLUTION,
        **{"task.style": "key features", "images.image0": pictures["images"]},
    )
    g.column("3 · Pairs")
    g.add("SaveImageTextDataSetToFolder", images=pictures["images"], texts=answer["text"], folder_name="lance_dataset")
    g.add("PreviewAny", "Captions", source=answer["text"])


WORKFLOWS = (image_question, video_question, caption, caption_dataset)
