"""The shipped workflows on disk: `workflows/NAME.json` for the page, `api/NAME.json` for the HTTP API."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
WORKFLOWS = REPOSITORY / "workflows"
API = REPOSITORY / "api"
INPUTS = API / "input"  # pictures and clips that the workflows load

IMAGE_MODEL, VIDEO_MODEL = "Lance_3B/model.safetensors", "Lance_3B_Video/model.safetensors"
DEMONSTRATION = "demonstration 64x64"

Prompt = dict[str, dict]  # node id → class_type and inputs, as POST /prompt takes it


def names() -> list[str]:
    return sorted(path.stem for path in API.glob("*.json"))


def load(name: str) -> Prompt:
    return json.loads((API / f"{name}.json").read_text())


def of_type(prompt: Prompt, class_type: str) -> list[dict]:
    """The inputs of all nodes of a class."""
    return [node["inputs"] for node in prompt.values() if node["class_type"] == class_type]


def for_lance(prompt: Prompt) -> Prompt:
    """The same workflow for Lance itself: its models, and the sizes that it was trained for."""
    prompt = deepcopy(prompt)
    video = bool(of_type(prompt, "CreateVideo"))
    for node in prompt.values():
        inputs, type = node["inputs"], node["class_type"]
        if type == "LanceLoader":
            inputs["model"] = VIDEO_MODEL if video or of_type(prompt, "LoadVideo") else IMAGE_MODEL
        if type == "EmptyLanceLatent":
            inputs["size"] = "video 480p 848x480" if video else "image 768x768"
        for name in ("resolution", "image_resolution", "video_resolution"):
            if inputs.get(name) == DEMONSTRATION:
                clip = name == "video_resolution" or type in ("LanceEncodeVideoEdit", "LanceImageToVideo")
                inputs[name] = "video 480p" if clip else "image 768"
        if inputs.get("frames", 1) != 1:
            inputs["frames"] = 49
    return prompt


def texts(entry: dict) -> list[str]:
    """What a finished prompt's text previews show."""
    return [text for node in entry["outputs"].values() for text in node.get("text", ()) if isinstance(text, str)]
