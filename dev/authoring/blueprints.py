"""Saves the blueprints, whole tasks in one node, with the real frontend; for developers:

    bash scripts/draw.sh blueprints [TITLE …] [--screenshots DIR]

Builds a graph as `workflows.py` does, and has the page make a subgraph of what lies between its loaded pictures and
its results. Then each is dropped from the page's search into an empty graph and run on the demonstration model.

    subgraphs/TITLE.json    as the page publishes it

Needs Chromium. `--screenshots` keeps a picture of each after the run in both of the frontend's renderers.
"""

from __future__ import annotations

import argparse
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page

from ..host.blueprints import drop, run
from ..host.browser import NODES_2, open_page
from ..host.server import ComfyServer
from ..host.workflows import BLUEPRINTS as FOLDER
from ..host.workflows import texts
from . import clips, pictures
from .drawing import build, check, open_workflow, settle
from .graph import Graph
from .parts import CIRCLE, MOVING, PAIR, RESOLUTION, load
from .settings import RESULTS, settings

MAKE_BLUEPRINT = Path(__file__).with_name("make_blueprint.js").read_text()
OUTSIDE = ("MarkdownNote", "LoadImage", "LoadImageMask", "LoadVideo", *RESULTS)
LABELS = {"images.image0": "image", "start": "image"}  # of what comes from outside


@dataclass(frozen=True)
class Blueprint:
    title: str
    definition: Callable[[Graph], None]
    description: str
    aliases: tuple[str, ...]


def ask(g: Graph, task: str = "question", **answer: str) -> None:
    g.column()
    lance = load(g)
    picture, video = g.add("LoadImage", image=PAIR), g.add("LoadVideo", file=MOVING)
    g.column()
    text = g.add(
        "LanceAnswer",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        task=task,
        image_resolution=RESOLUTION,
        video_resolution=RESOLUTION,
        video=video["VIDEO"],
        **{"images.image0": picture["IMAGE"]},
        **(answer or {"task.question": "Where is the orange square?"}),
    )
    g.column()
    g.add("PreviewAny", source=text["text"])


def caption(g: Graph) -> None:
    ask(g, "caption", **{"task.style": "accurate"})


def enhance_prompt(g: Graph) -> None:
    g.column()
    lance = load(g, clips=True)
    picture = g.add("LoadImage", image=PAIR)
    g.column()
    written = g.add(
        "LanceEnhancePrompt",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        prompt="a red star",
        sampling="on",
        image=picture["IMAGE"],
        image_resolution=RESOLUTION,
        **{"sampling.seed": 0},
    )
    g.column()
    g.add("PreviewAny", source=written["prompt"])


BLUEPRINTS = (
    Blueprint(
        "Text to Image (Lance)",
        pictures.text_to_image,
        "Draws a picture from a description. For a size that is not in the list, unpack it.",
        ("t2i", "generate image"),
    ),
    Blueprint(
        "Image Edit (Lance)",
        pictures.image_edit,
        "Changes a picture as you tell it and keeps the rest.",
        ("instruct", "edit image"),
    ),
    Blueprint(
        "Subject to Image (Lance)",
        pictures.subject_image,
        "What is in one to three pictures appears in a new one. For a size that is not in the list, unpack it.",
        ("reference", "character"),
    ),
    Blueprint(
        "Text to Video (Lance)",
        clips.text_to_video,
        "Makes a clip from a description. For a size that is not in the list, unpack it.",
        ("t2v", "generate video"),
    ),
    Blueprint(
        "Image to Video (Lance)",
        clips.image_to_video,
        "Makes a clip that begins with a picture.",
        ("i2v", "animate"),
    ),
    Blueprint(
        "Video Edit (Lance)",
        clips.video_edit,
        "Changes a clip as you tell it and keeps the rest, its sound too.",
        ("v2v", "edit video"),
    ),
    Blueprint("Ask (Lance)", ask, "Answers a question about pictures or a clip.", ("vqa", "question", "vision")),
    Blueprint("Caption (Lance)", caption, "Describes pictures or a clip.", ("describe", "tag")),
    Blueprint(
        "Enhance Prompt (Lance)",
        enhance_prompt,
        "Writes a short idea out as a long prompt, of a picture if there is one.",
        ("rewrite", "llm"),
    ),
)


def draw(page: Page, blueprint: Blueprint) -> str:
    """The blueprint as the page publishes it."""
    graph = build(page, blueprint.definition, blueprint.title)
    given = {
        "name": blueprint.title,
        "category": "Lance",
        "description": blueprint.description,
        "aliases": ["lance", *blueprint.aliases],
        "outside": OUTSIDE,
        "settings": settings(graph),
        "labels": LABELS,
    }
    made = json.loads(page.evaluate(MAKE_BLUEPRINT, given))
    open_workflow(page, made, blueprint.title)
    check(page, blueprint.title)
    return with_lasting_ids(made, blueprint.title)


def picture(blueprint: Blueprint) -> str:
    """What its prompt speaks of."""
    graph = Graph()
    blueprint.definition(graph)
    return next((node.inputs["image"] for node in graph.nodes if node.type == "LoadImage"), CIRCLE)


def with_lasting_ids(made: dict, title: str) -> str:
    """The same ids each time it is drawn, where the page takes random ones."""
    (subgraph,) = made["definitions"]["subgraphs"]
    text = json.dumps(made, indent=2, ensure_ascii=False)
    for number, part in enumerate((subgraph, *subgraph["inputs"], *subgraph["outputs"])):
        text = text.replace(part["id"], str(uuid.uuid5(uuid.NAMESPACE_URL, f"{title} {number}")))
    return text + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("titles", nargs="*", help="blueprints to save; all when none is given")
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="keep a picture of each run here")
    arguments = parser.parse_args()
    chosen = [blueprint for blueprint in BLUEPRINTS if not arguments.titles or blueprint.title in arguments.titles]

    FOLDER.mkdir(exist_ok=True)
    with ComfyServer() as server, open_page(server.url) as page:
        settle(page)
        for blueprint in chosen:
            (FOLDER / f"{blueprint.title}.json").write_text(draw(page, blueprint))
    with ComfyServer() as server, open_page(server.url) as page:  # which reads what is there when it starts
        for vue in (False, True):
            page.evaluate(NODES_2, vue)
            for blueprint in chosen:
                drop(page, blueprint.title)
                entry = run(page, server, picture(blueprint))
                made = [*(path.name for path in server.outputs(entry)), *texts(entry)]
                print(f"{blueprint.title} in {'Nodes 2.0' if vue else 'the canvas'}: {', '.join(made)}")
                if arguments.screenshots:
                    arguments.screenshots.mkdir(parents=True, exist_ok=True)
                    page.screenshot(path=arguments.screenshots / f"{blueprint.title} {'vue' if vue else 'canvas'}.png")


if __name__ == "__main__":
    main()
