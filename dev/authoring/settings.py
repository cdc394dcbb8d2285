"""The few things that a person sets: what app mode shows of a workflow, and a blueprint of what is inside it."""

from __future__ import annotations

from .graph import Graph, Link

# (node, widget), in the order in which they are shown.
SETTINGS = (
    ("LoadImage", "image"),
    ("LoadImageMask", "image"),
    ("LoadVideo", "file"),
    ("LoadAudio", "audio"),
    ("LoadImageDataSetFromFolder", "folder"),
    ("LoadImageTextDataSetFromFolder", "folder"),
    ("StringConcatenate", "string_a"),
    ("TrainLoraNode", "steps"),
    ("TrainLoraNode", "learning_rate"),
    ("PrimitiveStringMultiline", "value"),
    ("LanceEncode", "prompt"),
    ("LanceEncodeEdit", "prompt"),
    ("LanceEncodeVideoEdit", "prompt"),
    ("LanceEncodeReferences", "prompt"),
    ("LanceEnhancePrompt", "prompt"),
    ("LanceAnswer", "task.question"),
    ("LanceAnswer", "task.style"),
    ("EmptyLanceLatent", "size"),
    ("LanceEncodeEdit", "resolution"),
    ("LanceEncodeVideoEdit", "resolution"),
    ("LanceEncodeReferences", "resolution"),
    ("LanceImageToVideo", "resolution"),
    ("LanceAnswer", "image_resolution"),
    ("LanceAnswer", "video_resolution"),
    ("LanceEnhancePrompt", "image_resolution"),
    ("LanceRank", "image_resolution"),
    ("EmptyLanceLatent", "frames"),
    ("LanceImageToVideo", "frames"),
    ("KSampler", "seed"),
    ("LanceEnhancePrompt", "sampling.seed"),
    ("LanceLoader", "model"),
)
ADVANCED = {"image_resolution", "video_resolution"}  # which app mode cannot show
RESULTS = ("SaveImage", "SaveVideo", "SaveText", "PreviewAny")


def settings(g: Graph) -> list[tuple[int, str]]:
    """(node, widget) of what a person sets in this graph: what its plan gives a value, no link."""
    return [
        (node.id, widget)
        for type, widget in SETTINGS
        for node in g.nodes
        if node.type == type and widget in node.inputs and not isinstance(node.inputs[widget], Link)
    ]


def linear_data(g: Graph) -> dict:
    """App mode's part of a workflow's `extra`."""
    shown = [(node, widget) for node, widget in settings(g) if widget not in ADVANCED]
    return {"inputs": shown, "outputs": [node.id for node in g.nodes if node.type in RESULTS]}
