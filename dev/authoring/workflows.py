"""Saves the shipped workflows with the real frontend; for developers:

    bash scripts/draw.sh workflows [NAME …] [--screenshots DIR]

Runs ComfyUI, builds each graph of `pictures.py`, `clips.py` and `text.py` in its page in Chromium, runs it on the
demonstration model, and writes

    workflows/NAME.json    as the page's menu Export saves it
    workflows/NAME.jpg     the template browser's picture: a title over what the demonstration model made
    api/NAME.json          as Export (API) saves it

Needs Chromium. `--screenshots` keeps a picture of each graph in both of the frontend's renderers: look at them.
"""

from __future__ import annotations

import argparse
import json
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from ..host import workflows as shipped
from ..host.browser import open_page
from ..host.server import ComfyServer
from . import clips, pictures, text
from .cards import frames, title_card
from .graph import Graph
from .parts import MASK

WORKFLOWS = (*pictures.WORKFLOWS, *clips.WORKFLOWS, *text.WORKFLOWS)
BUILD_GRAPH = Path(__file__).with_name("build_graph.js").read_text()
EMPTY = {"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": [], "extra": {}}
# Width and height that a node gets at least; samplers and save nodes have room for their pictures.
SIZES = {
    "default": (300, 0),
    "MarkdownNote": (360, 0),
    "LanceEncode": (400, 400),
    "KSampler": (300, 480),
    "SaveImage": (400, 400),
    "SaveVideo": (400, 380),
}
LAYOUT = {
    "sizes": SIZES,
    "gap": 60,
    "padding": 15,
    "view": {"width": 1600, "left": 80, "top": 200, "zoom": 0.8},
}
MEDIA = {".png", ".mp4"}
MISSING = "app.graph.nodes.filter((node) => !(node.type in LiteGraph.registered_node_types)).map((node) => node.type)"
# A button for uploads has no value, but the page saves one, which a newer host's next widget would take for its own.
SAVED = """async () => {
    const { workflow, output } = await app.graphToPrompt()
    for (const { id, widgets_values } of workflow.nodes) {
        const saved = app.graph.getNodeById(id).widgets?.filter((widget) => widget.serialize !== false)
        if (saved?.at(-1)?.type === 'button') widgets_values.pop()
    }
    return [workflow, output].map((graph) => JSON.stringify(graph, null, 2))
}"""


def open_workflow(page: Page, workflow: dict, name: str) -> None:
    page.evaluate("async ([workflow, name]) => await app.loadGraphData(workflow, true, true, name)", [workflow, name])
    page.wait_for_timeout(500)


def draw(page: Page, definition: Callable) -> tuple[str, str]:
    """(workflow, API prompt) as the frontend saves them, after opening what it saved once."""
    graph, name = Graph(), definition.__name__
    definition(graph)
    open_workflow(page, EMPTY | {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, name))}, name)
    page.evaluate(BUILD_GRAPH, {"columns": [asdict(column) for column in graph.columns], **LAYOUT})
    for _ in range(2):  # opening adds what the nodes fill in when they are loaded
        saved = page.evaluate(SAVED)
        open_workflow(page, json.loads(saved[0]), name)
    if page.evaluate(SAVED) != saved:
        raise RuntimeError(f"{name} changes when it is opened")
    missing = page.evaluate(MISSING)
    errors = lasting_errors(page)
    if missing or errors:
        raise RuntimeError(f"{name}: missing nodes {missing}, errors {errors}")
    return saved


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
        page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue)
        page.wait_for_timeout(2000)
        page.screenshot(path=folder / f"{name}_{renderer}.png")
    page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def preview(server: ComfyServer, name: str) -> Image.Image:
    """A card with what the workflow looks at and what it makes."""
    prompt = shipped.load(name)
    values = {str(value) for node in prompt.values() for value in node["inputs"].values()}
    given = [path for path in sorted(shipped.INPUTS.rglob("*.*")) if {path.name, path.parent.name} & values]
    entry = server.wait(server.queue(prompt))
    made = [path for path in server.outputs(entry) if path.suffix in MEDIA]
    shown = [picture for path in given if path.name != MASK for picture in frames(path)]
    shown += [picture for path in made for picture in frames(path)[-1 if given else 0 :]]
    return title_card(name.replace("_", " ").capitalize(), "Lance · by its demonstration model", shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="workflows to save; all when none is given")
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="keep a picture of each graph here")
    arguments = parser.parse_args()
    chosen = [d for d in WORKFLOWS if not arguments.names or d.__name__ in arguments.names]

    with ComfyServer() as server, open_page(server.url) as page:
        for definition in chosen:
            name = definition.__name__
            workflow, prompt = draw(page, definition)
            (shipped.WORKFLOWS / f"{name}.json").write_text(workflow + "\n")
            (shipped.API / f"{name}.json").write_text(prompt + "\n")
            if arguments.screenshots:
                screenshot(page, arguments.screenshots, name)
            preview(server, name).save(shipped.WORKFLOWS / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main()
