"""Graphs in ComfyUI's page: built from their plans, saved as the page saves them, looked at."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from playwright.sync_api import Page

from ..host.browser import NODES_2
from .graph import Graph
from .settings import linear_data

BUILD_GRAPH = Path(__file__).with_name("build_graph.js").read_text()
EMPTY = {"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": [], "extra": {}}
# Width and height that a node gets at least; samplers and save nodes have room for their pictures.
SIZES = {
    "default": (300, 0),
    "EmptyLanceLatent": (300, 140),
    "LoadImage": (300, 300),
    "LoadImageMask": (300, 300),
    "LoadVideo": (300, 400),
    "LanceEncode": (380, 240),
    "LanceEncodeEdit": (380, 240),
    "LanceEncodeVideoEdit": (380, 240),
    "LanceEncodeReferences": (380, 260),
    "LanceImageToVideo": (380, 180),
    "LanceAnswer": (380, 280),
    "LanceEnhancePrompt": (380, 240),
    "LanceRank": (380, 360),
    "KSampler": (300, 480),
    "MakeTrainingDataset": (300, 140),
    "TrainLoraNode": (320, 590),
    "SaveLoRA": (300, 140),
    "LossGraphNode": (300, 340),
    "LoraModelLoader": (300, 160),
    "PreviewAny": (280, 200),
    "PreviewImage": (300, 300),
    "SaveImage": (480, 560),
    "SaveVideo": (480, 620),
    "SaveImageTextDataSetToFolder": (300, 180),
}
# The gap leaves room for *Show advanced inputs*, which Nodes 2.0 hangs below a node. A window of usual size.
LAYOUT = {
    "sizes": SIZES,
    "gap": 40,
    "padding": 20,
    "view": {"width": 1440, "height": 900, "left": 100, "top": 110, "least": 0.7},
}
MISSING = "app.graph.nodes.filter((node) => !(node.type in LiteGraph.registered_node_types)).map((node) => node.type)"
# A button for uploads has no value, but the page saves one, which a newer host's next widget would take for its own.
# The view of a clip is no input of its node; the page adds it a moment after the graph.
SAVED = """async () => {
    const { workflow, output } = await app.graphToPrompt()
    for (const { id, widgets_values } of workflow.nodes) {
        const saved = app.graph.getNodeById(id).widgets?.filter((widget) => widget.serialize !== false)
        if (saved?.at(-1)?.type === 'button') widgets_values.pop()
    }
    for (const { inputs } of Object.values(output)) delete inputs['video-preview']
    return [workflow, output].map((graph) => JSON.stringify(graph, null, 2))
}"""


def settle(page: Page) -> None:
    """Until the page has said what its own first graph lacks, which it would say of the next."""
    page.wait_for_timeout(3000)


def open_workflow(page: Page, workflow: dict, name: str) -> None:
    page.evaluate("async ([workflow, name]) => await app.loadGraphData(workflow, true, true, name)", [workflow, name])
    page.wait_for_timeout(500)


def build(page: Page, definition: Callable[[Graph], None], name: str) -> Graph:
    """The plan of a definition, built in the page."""
    graph = Graph()
    definition(graph)
    extra = {"linearData": linear_data(graph)}
    open_workflow(page, EMPTY | {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)), "extra": extra}, name)
    page.evaluate(BUILD_GRAPH, {"columns": [[asdict(box) for box in column] for column in graph.columns], **LAYOUT})
    return graph


def saved(page: Page, name: str) -> tuple[str, str]:
    """(workflow, API prompt) as the frontend saves them, after opening what it saved once."""
    for _ in range(2):  # opening adds what the nodes fill in when they are loaded
        files = page.evaluate(SAVED)
        open_workflow(page, json.loads(files[0]), name)
    if page.evaluate(SAVED) != files:
        raise RuntimeError(f"{name} changes when it is opened")
    check(page, name)
    return files


def check(page: Page, name: str) -> None:
    """RuntimeError if the open graph lacks nodes or the page complains."""
    missing, errors = page.evaluate(MISSING), lasting_errors(page)
    if missing or errors:
        raise RuntimeError(f"{name}: missing nodes {missing}, errors {errors}")


def lasting_errors(page: Page, seconds: float = 10) -> list[str]:
    """What the page reports as errors. Those of the graph that was open before fade when the next one is."""
    for _ in range(int(seconds * 4)):
        errors = page.get_by_test_id("error-overlay").all_inner_texts()
        if not errors:
            break
        page.wait_for_timeout(250)
    return errors


def screenshot(page: Page, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for renderer, vue in (("canvas", False), ("vue", True)):
        page.evaluate(NODES_2, vue)
        page.wait_for_timeout(2000)
        page.screenshot(path=folder / f"{name}_{renderer}.png")
    page.evaluate(NODES_2, False)
