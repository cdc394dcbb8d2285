"""The shipped workflows that answer in words. A function that is listed in WORKFLOWS is a workflow."""

from __future__ import annotations

from .graph import Graph, Link
from .parts import MOVING, PAIR, RESOLUTION, load, note

SHOWN = (480, 300)  # the size of a node that shows text


def save_text(g: Graph, title: str, name: str, text: Link) -> None:
    """Shows a text, in app mode as well, where only what is saved is seen."""
    g.add("SaveText", title, text=text, filename_prefix=f"lance/{name}").size = SHOWN


def image_question(g: Graph) -> None:
    text = """
    Lance looks at a picture and answers.

    - **Question**: anything. Connect more pictures and ask about all of them.
    - **Sampling** *on* if an answer stops at once or repeats itself.
    """
    note(g, "Ask about a picture", text)
    g.box("1 · Model and picture")
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
    save_text(g, "Answer", "image_question", answer["text"])


def video_question(g: Graph) -> None:
    text = """
    Lance watches up to six seconds of a clip and answers.

    - **Question**: what happens, in which order, in which direction.
    """
    note(g, "Ask about a clip", text, clips=True)
    g.box("1 · Model and clip")
    lance = load(g, clips=True)
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
    save_text(g, "Answer", "video_question", answer["text"])


def caption(g: Graph) -> None:
    text = """
    Lance describes a picture, for a dataset or as a prompt.

    - **Style**: how much it says.
    - A clip can be connected in place of the picture.
    """
    note(g, "Caption", text)
    g.box("1 · Model and picture")
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
    save_text(g, "Caption", "caption", answer["text"])


def caption_dataset(g: Graph) -> None:
    text = """
    Every picture of a folder gets a caption. Pictures, numbered anew, and text files are written side by side; to keep
    names, see *clients* in the plugin's folder.

    - **Folder**: a folder in ComfyUI's *input*.
    - **Folder name**: where the pairs go, in ComfyUI's *output*.
    """
    note(g, "Caption a folder", text)
    g.box("1 · Model and folder")
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
    g.add("PreviewAny", "Captions", source=answer["text"]).size = SHOWN


WORKFLOWS = (image_question, video_question, caption, caption_dataset)
