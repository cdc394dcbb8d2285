"""The shipped workflows on disk: `api/NAME.json` for the HTTP API, and as templates for the page

workflows/Lance - TITLE.json        the graph, and what app mode shows of it
workflows/Lance - TITLE.app.json    the same, opened in app mode
subgraphs/TITLE (Lance).json        a blueprint: all of it in one node
"""

from __future__ import annotations

import json
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
WORKFLOWS = REPOSITORY / "workflows"
BLUEPRINTS = REPOSITORY / "subgraphs"
API = REPOSITORY / "api"
INPUTS = API / "input"  # pictures and clips that the workflows load

IMAGE_MODEL, VIDEO_MODEL = "Lance_3B/model.safetensors", "Lance_3B_Video/model.safetensors"

# In alphabetical order, as the template browser sorts them, what belongs together stands together.
TITLES = {
    "video_question": "ask about a clip",
    "image_question": "ask about a picture",
    "caption_dataset": "caption a folder",
    "caption": "caption a picture",
    "image_edit": "image edit",
    "multi_turn_edit": "image edit in turns",
    "masked_edit": "image edit with a mask",
    "image_to_video": "image to video",
    "caption_to_video": "image to video from a caption",
    "continued_clip": "image to video continued",
    "first_last_frame": "image to video with a last frame",
    "subject_image": "subject to image",
    "subject_video": "subject to video",
    "text_to_image": "text to image",
    "best_of_four": "text to image, best of four",
    "quick_text_to_image": "text to image quickly",
    "text_to_video": "text to video",
    "enhanced_text_to_video": "text to video from an idea",
    "long_text_to_video": "text to video of any length",
    "train_look": "train a look",
    "train_edit": "train an edit",
    "video_edit": "video edit",
    "long_video_edit": "video edit of any length",
}
APPS = (
    "text_to_image",
    "image_edit",
    "subject_image",
    "text_to_video",
    "image_to_video",
    "video_edit",
    "image_question",
)

Prompt = dict[str, dict]  # node id → class_type and inputs, as POST /prompt takes it


def names() -> list[str]:
    return sorted(path.stem for path in API.glob("*.json"))


def template(name: str) -> str:
    """The name in the template browser, which is the file's."""
    return f"Lance - {TITLES[name]}"


def templates() -> dict[str, str]:
    """Template → the workflow that it is."""
    return {template(name): name for name in names()} | {f"{template(name)}.app": name for name in APPS}


def load(name: str) -> Prompt:
    return json.loads((API / f"{name}.json").read_text())


def of_type(prompt: Prompt, class_type: str) -> list[dict]:
    """The inputs of all nodes of a class."""
    return [node["inputs"] for node in prompt.values() if node["class_type"] == class_type]


def texts(entry: dict) -> list[str]:
    """What a finished prompt's text previews show."""
    return [text for node in entry["outputs"].values() for text in node.get("text", ()) if isinstance(text, str)]
