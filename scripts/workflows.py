"""The shipped workflows on disk: `workflows/NAME.json` for the page, `api/NAME.json` for the HTTP API."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WORKFLOWS = REPOSITORY / "workflows"
API = REPOSITORY / "api"
INPUTS = API / "input"  # pictures and clips that the workflows load

SMALLEST = {"image": "image 256", "video": "video 192p"}  # of the Lance nodes' resolutions

Prompt = dict[str, dict]  # node id → class_type and inputs, as POST /prompt takes it


def names() -> list[str]:
    return sorted(path.stem for path in API.glob("*.json"))


def load(name: str) -> Prompt:
    return json.loads((API / f"{name}.json").read_text())


def of_type(prompt: Prompt, class_type: str) -> list[dict]:
    """The inputs of all nodes of a class."""
    return [node["inputs"] for node in prompt.values() if node["class_type"] == class_type]


def shrunk(
    prompt: Prompt, width: int = 128, height: int = 128, frames: int = 9, steps: int = 3, tokens: int = 8
) -> Prompt:
    """The same workflow, small enough for a CPU: sizes, frames, steps and tokens are at most these."""
    prompt = deepcopy(prompt)
    for node in prompt.values():
        inputs, type = node["inputs"], node["class_type"]
        if type == "EmptyLanceLatent":
            inputs |= {"size": "custom", "size.width": width, "size.height": height}
        if type in ("LanceEncodeEdit", "LanceEncodeReferences", "LanceAnswer"):
            inputs["image_resolution" if type == "LanceAnswer" else "resolution"] = "image 256"
        if type in ("LanceEncodeVideoEdit", "LanceImageToVideo", "LanceAnswer"):
            inputs["video_resolution" if type == "LanceAnswer" else "resolution"] = "video 192p"
        if type == "LanceEncodeVideoEdit":
            inputs["max_seconds"] = 1.0
        for name, most in (("frames", frames), ("steps", steps), ("max_length", tokens)):
            if isinstance(inputs.get(name), int):
                inputs[name] = min(inputs[name], most)
    return prompt


def texts(entry: dict) -> list[str]:
    """What a finished prompt's text previews show."""
    return [text for node in entry["outputs"].values() for text in node.get("text", ()) if isinstance(text, str)]
