"""Blueprints: whole tasks in one node, served by ComfyUI, found by the page's search, run in both of its renderers."""

from __future__ import annotations

import json
import urllib.request

import pytest
from comfyui_lance.dev.host import workflows

pytestmark = [pytest.mark.server]

FILES = sorted(path.stem for path in workflows.BLUEPRINTS.glob("*.json"))
# What an artist sets, on the node itself. A picture or a clip comes by a link.
OUTSIDE = {
    "Ask (Lance)": {"question", "model"},
    "Caption (Lance)": {"style", "model"},
    "Enhance Prompt (Lance)": {"prompt", "seed", "model"},
    "Image Edit (Lance)": {"prompt", "resolution", "seed", "model"},
    "Image to Video (Lance)": {"prompt", "resolution", "frames", "seed", "model"},
    "Subject to Image (Lance)": {"prompt", "size", "seed", "model"},
    "Text to Image (Lance)": {"prompt", "size", "seed", "model"},
    "Text to Video (Lance)": {"prompt", "size", "frames", "seed", "model"},
    "Video Edit (Lance)": {"prompt", "resolution", "seed", "model"},
}


@pytest.fixture(scope="module")
def served(server) -> dict[str, dict]:
    """Title → the blueprint, as the page reads it."""

    def read(path: str) -> dict:
        with urllib.request.urlopen(f"{server.url}{path}") as response:
            return json.load(response)

    ours = {id: entry for id, entry in read("/global_subgraphs").items() if entry["source"] == "custom_node"}
    return {entry["name"]: json.loads(read(f"/global_subgraphs/{id}")["data"]) for id, entry in ours.items()}


def test_the_server_serves_them(served):
    assert set(served) == set(FILES) == set(OUTSIDE)


@pytest.mark.parametrize("title", OUTSIDE)
def test_a_blueprint_is_one_node_with_the_few_things_that_are_set(served, title):
    (node,), (subgraph,) = served[title]["nodes"], served[title]["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"] and subgraph["name"] == node["title"] == title
    assert subgraph["category"] == "Lance" and subgraph["description"].endswith(".")
    assert OUTSIDE[title] <= {slot["name"] for slot in node["inputs"] if "widget" in slot}
    assert len(node["outputs"]) == 1
    assert {inner["type"] for inner in subgraph["nodes"]} >= {"LanceLoader"}


playwright = pytest.importorskip("playwright", reason="playwright is not installed")
from comfyui_lance.dev.host import blueprints, browser  # noqa: E402


@pytest.fixture(scope="module")
def page(server):
    if browser.find_chromium() is None:
        pytest.skip("no Chromium or Chrome on the path")
    with browser.open_page(server.url) as page:
        yield page


@pytest.mark.browser
@pytest.mark.parametrize("renderer", ["canvas", "Nodes 2.0"])
@pytest.mark.parametrize("title", ["Image Edit (Lance)", "Ask (Lance)"])
def test_a_blueprint_is_dropped_and_runs(server, page, title, renderer):
    page.evaluate(browser.NODES_2, renderer == "Nodes 2.0")
    blueprints.drop(page, title)
    entry = blueprints.run(page, server, "lance_pair.png")
    if title.startswith("Ask"):
        assert workflows.texts(entry) == ["on the right"]
    else:
        assert [path.suffix for path in server.outputs(entry)] == [".png"]
    assert page.get_by_test_id("error-overlay").all_inner_texts() == []
