"""Saves the shipped workflows with the real frontend; for developers:

    bash scripts/draw.sh workflows [NAME …] [--screenshots DIR]

Runs ComfyUI, builds each graph of `pictures.py`, `clips.py`, `long_clips.py`, `text.py` and `learning.py` in its page
in Chromium, runs it on the demonstration model, and writes

    workflows/Lance - TITLE.json        as the page's menu Export saves it
    workflows/Lance - TITLE.jpg         the template browser's picture: a title over what the demonstration model made
    workflows/Lance - TITLE.app.json    the main ones again, and their pictures: these open in app mode
    api/NAME.json                       as Export (API) saves it

Needs Chromium. `--screenshots` keeps a picture of each graph after a run in both of the frontend's renderers, and of
its app: look at them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from ..host import workflows as shipped
from ..host.browser import open_page
from ..host.server import ComfyServer
from . import clips, learning, long_clips, pictures, text
from .cards import frames, title_card
from .drawing import build, open_workflow, saved, screenshot, settle
from .parts import MASK

WORKFLOWS = (
    *pictures.WORKFLOWS,
    *clips.WORKFLOWS,
    *long_clips.WORKFLOWS,
    *text.WORKFLOWS,
    *learning.WORKFLOWS,
)
MEDIA = {".png", ".mp4"}
FEW, MOST = 2, 3  # pictures on a card: of a large folder, and of all that a workflow looks at


def looked_at(prompt: shipped.Prompt) -> list[Image.Image]:
    """What a workflow loads; of a large folder a few."""
    values = {str(value) for node in prompt.values() for value in node["inputs"].values()}
    media = [path for path in sorted(shipped.INPUTS.rglob("*.[!t]*")) if {path.name, path.parent.name} & values]
    few = media[:: max(1, len(media) // FEW)]
    return [part for path in few if path.name != MASK for picture in frames(path) for part in parts(picture)][:MOST]


def parts(picture: Image.Image) -> list[Image.Image]:
    """Both of two squares that stand side by side in one picture."""
    side = picture.height
    squares = range(0, picture.width, side) if picture.width == 2 * side else ()
    return [picture.crop((x, 0, x + side, side)) for x in squares] or [picture]


def preview(server: ComfyServer, name: str) -> dict[str, Image.Image]:
    """Template → a card with what the workflow looks at and what it makes."""
    prompt = shipped.load(name)
    given = looked_at(prompt)
    entry = server.wait(server.queue(prompt))
    made = [path for path in server.outputs(entry) if path.suffix in MEDIA]
    shown = given + [picture for path in made for picture in frames(path)[-1 if given else 0 :]]
    title, made_by = shipped.TITLES[name].capitalize(), "Lance · by its demonstration model"
    cards = {shipped.template(name): title_card(title, made_by, shown)}
    if name in shipped.APPS:
        cards[f"{shipped.template(name)}.app"] = title_card(title, f"App · {made_by}", shown)
    return cards


def as_app(workflow: str) -> str:
    """The same workflow, opened in app mode."""
    graph = json.loads(workflow)
    graph["extra"]["linearMode"] = True
    return json.dumps(graph, indent=2, ensure_ascii=False)


def run(page: Page, server: ComfyServer) -> None:
    """Runs the open graph, as the page's button does."""
    page.evaluate("app.queuePrompt(0, 1)")
    page.wait_for_timeout(500)
    server.wait_until_idle()
    page.wait_for_timeout(1500)  # the results come a moment later


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="workflows to save; all when none is given")
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="keep a picture of each graph here")
    arguments = parser.parse_args()
    chosen = [d for d in WORKFLOWS if not arguments.names or d.__name__ in arguments.names]

    with ComfyServer() as server, open_page(server.url, width=1440) as page:
        settle(page)
        for definition in chosen:
            name = definition.__name__
            template = shipped.template(name)
            build(page, definition, template)
            workflow, prompt = saved(page, template)
            (shipped.WORKFLOWS / f"{template}.json").write_text(workflow + "\n")
            (shipped.API / f"{name}.json").write_text(prompt + "\n")
            if name in shipped.APPS:
                (shipped.WORKFLOWS / f"{template}.app.json").write_text(as_app(workflow) + "\n")
            for card, picture in preview(server, name).items():
                picture.save(shipped.WORKFLOWS / f"{card}.jpg", quality=88)
            if arguments.screenshots:
                run(page, server)
                screenshot(page, arguments.screenshots, name)
                open_workflow(page, json.loads(as_app(workflow)), f"{template}.app")
                run(page, server)
                page.screenshot(path=arguments.screenshots / f"{name}_app.png")


if __name__ == "__main__":
    main()
