"""ComfyUI's page in Chromium: the shipped workflows open from the template browser, and one runs to its picture."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

import pytest
from comfyui_lance.dev.host import workflows
from comfyui_lance.nodes.progress import PLAIN

pytest.importorskip("playwright", reason="playwright is not installed")
from comfyui_lance.dev.host import browser  # noqa: E402  needs playwright

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser.find_chromium() is None, reason="no Chromium or Chrome on the path"),
]

TEMPLATES = workflows.templates()
ARTIFACTS = workflows.REPOSITORY / "tests" / "artifacts"
PROMPT = "async () => (await app.graphToPrompt()).output"
MISSING = "app.graph.nodes.filter((node) => !(node.type in LiteGraph.registered_node_types)).map((node) => node.type)"
LOADED = "(image) => image.complete && image.naturalWidth > 0"
# The first eight cards are some of these.
# Of the first eight all but one: the page finds "Dancer" as well.
FOUND = """(cards) => {
    const first = [...document.querySelectorAll('[data-testid^=template-workflow-]')].slice(0, 8)
    return first.filter((card) => cards.includes(card.dataset.testid)).length >= 7
}"""
# As the template browser opens a file.
OPEN = "async ([url, name]) => app.loadGraphData(await (await fetch(url)).json(), true, true, name)"
# One more widget on each of these nodes, after those that they have.
EXTEND = """(nodes) => Promise.all(Object.entries(nodes).map(([name, node]) => {
    node.input.optional = { ...node.input.optional, added: ['STRING', { default: 'its default' }] }
    node.input_order.optional = Object.keys(node.input.optional)
    return app.registerNodeDef(name, node)
}))"""
# Many steps, as newer pages take away what nodes said when a job ends.
WRITE = """(words) => {
    for (const [type, name, value] of [['LanceEncode', 'prompt', words], ['KSampler', 'steps', 10000]]) {
        const node = app.graph.nodes.find((node) => node.type === type)
        node.widgets.find((widget) => widget.name === name).value = value
    }
}"""
# What SaveImage shows on the canvas: its loaded picture.
SHOWN = """() => {
    const picture = app.graph.nodes.find((node) => node.type === 'SaveImage').imgs?.[0]
    return picture?.complete && [picture.naturalWidth, picture.naturalHeight]
}"""


def screenshot(page, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png")


def complaints(page) -> list[str]:
    return page.locator("[data-testid=error-overlay], [role=alertdialog], .p-toast-message-error").all_inner_texts()


def check_opens(page, template: str, open: Callable) -> None:
    """The workflow comes on the canvas, whole and without complaints."""
    name = TEMPLATES[template]
    with browser.settled(page):
        open()
        page.wait_for_function(
            "([title, count]) => document.title.includes(title) && app.graph.nodes.length >= count",
            arg=[template.removesuffix(".app"), len(workflows.load(name))],
        )
    screenshot(page, template)
    assert page.evaluate(MISSING) == []
    assert complaints(page) == []
    check_prompt(page.evaluate(PROMPT), workflows.load(name))


def check_prompt(prompt: dict, shipped: dict) -> None:
    """What the page sends is what was shipped, but for inputs that the host's own nodes have beside."""
    assert prompt.keys() == shipped.keys()
    for node, spec in shipped.items():
        added = prompt[node]["inputs"].keys() - spec["inputs"].keys()
        assert not (added and "Lance" in spec["class_type"])
        left = {key: value for key, value in prompt[node]["inputs"].items() if key not in added}
        assert prompt[node] | {"inputs": left} == spec


@pytest.fixture(scope="module")
def pack(server) -> str:
    """The plugin's name among the templates, which is its folder's."""
    with urllib.request.urlopen(f"{server.url}/workflow_templates") as response:
        (name,) = json.load(response)
    return name


@pytest.fixture(scope="module")
def page(server, pack):
    with browser.open_page(server.url) as page:
        yield page


def open_template(page, pack: str, template: str) -> None:
    page.evaluate(OPEN, [f"/api/workflow_templates/{pack}/{template}.json", template])


def card(page, template: str):
    """A template's card, in view. The page makes the next ones when the last that it has comes into view."""
    found = page.get_by_test_id(f"template-workflow-{template}")
    while not found.count():
        with browser.settled(page):
            page.locator("[data-testid^='template-workflow-']").last.scroll_into_view_if_needed()
    found.scroll_into_view_if_needed()
    return found


def test_the_template_browser_shows_and_opens_them(page, pack):
    page.get_by_role("button", name="Templates").click()
    page.get_by_text(pack, exact=True).click()
    for template in TEMPLATES:
        page.wait_for_function(LOADED, arg=card(page, template).locator("img").first.element_handle())
    screenshot(page, "templates")
    check_opens(page, workflows.template("text_to_image"), card(page, workflows.template("text_to_image")).click)


def test_a_search_of_all_templates_finds_them(page):
    page.get_by_role("button", name="Templates").click()
    page.get_by_text("All Templates", exact=True).first.click()
    page.get_by_placeholder("Search").last.fill("lance")
    page.wait_for_function(FOUND, arg=[f"template-workflow-{template}" for template in TEMPLATES])
    screenshot(page, "search")
    page.keyboard.press("Escape")


@pytest.mark.parametrize("template", TEMPLATES)
def test_workflow_opens(page, pack, template):
    check_opens(page, template, lambda: open_template(page, pack, template))


@pytest.mark.parametrize(
    ("name", "node", "value"), [("text_to_image", "LanceLoader", "a"), ("image_edit", "LoadImage", "b")]
)
def test_complaints_are_noticed(page, name, node, value):
    graph = json.loads((workflows.WORKFLOWS / f"{workflows.template(name)}.json").read_text())
    next(each for each in graph["nodes"] if each["type"] == node)["widgets_values"][0] = f"{value}.safetensors"
    with browser.settled(page):
        page.evaluate("async (graph) => await app.loadGraphData(graph, true, true, 'wrong')", graph)
    assert complaints(page)


def test_the_page_offers_what_a_workflow_names_and_lacks(server, page):
    """As somebody's workflow on Lance opens where there is no Lance."""
    nodes = server.object_info()
    nodes["LanceLoader"]["input"]["required"]["model"][1]["options"] = ["demonstration (nano)"]
    template = workflows.template("text_to_image")
    graph = json.loads((workflows.WORKFLOWS / f"{template}.json").read_text())
    (loader,) = (node for node in graph["nodes"] if node["type"] == "LanceLoader")
    loader["widgets_values"][0] = workflows.IMAGE_MODEL

    stranger = page.context.browser.new_page()
    stranger.route("**/object_info", lambda route: route.fulfill(json=nodes))
    browser.visit(stranger, server.url)
    stranger.evaluate("async (graph) => await app.loadGraphData(graph, true, true, 'missing')", graph)
    stranger.get_by_role("button", name="View details").click()
    panel = stranger.locator("body")
    stranger.get_by_role("button", name="Download all").wait_for()
    screenshot(stranger, "missing")
    assert "Missing Models" in panel.inner_text() and "Unknown" not in panel.inner_text()
    assert f"{workflows.IMAGE_MODEL}\nlance\nDownload" in panel.inner_text()
    stranger.close()


def test_what_the_page_sends_for_a_clip_runs(server, page, pack):
    open_template(page, pack, workflows.template("video_edit"))
    entry = server.wait(server.queue(page.evaluate(PROMPT)))
    assert [path.suffix for path in server.outputs(entry)] == [".mp4"]


def test_the_picture_appears(page, pack):
    open_template(page, pack, workflows.template("text_to_image"))
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(SHOWN)
    assert page.evaluate(SHOWN) == [64, 64]
    assert complaints(page) == []
    screenshot(page, "picture")


@pytest.mark.parametrize("renderer", ["canvas", "Nodes 2.0"])
def test_what_a_node_says_is_shown_to_the_letter(renderer, server, page, pack):
    """Where the page takes it for markup, it would hide what looks like a tag."""
    spelling = f"<lora:{renderer}:1>"
    page.evaluate(browser.NODES_2, renderer != "canvas")
    open_template(page, pack, workflows.template("text_to_image"))
    page.evaluate(WRITE, f"a red circle {spelling}")
    page.get_by_test_id("queue-button").click()
    try:
        page.get_by_text(f"Read as plain words: {spelling.translate(PLAIN)}.").first.wait_for(timeout=30_000)
    finally:
        page.evaluate("app.api.interrupt()")
        server.wait_until_idle()
    page.evaluate(browser.NODES_2, False)


def test_widgets_that_newer_hosts_add_get_their_defaults(server, page, pack):
    """As Load Video got `edit` in ComfyUI 0.35 (comfy_extras/nodes_video.py). Last, as the page keeps them."""
    core = {name: node for name, node in server.object_info().items() if node["python_module"].startswith("comfy")}
    for name in ("masked_edit", "text_to_video", "video_edit"):
        shipped = workflows.load(name)
        types = {spec["class_type"] for spec in shipped.values()} & core.keys()
        page.evaluate(EXTEND, {type: core[type] for type in types})
        with browser.settled(page):
            open_template(page, pack, workflows.template(name))
        prompt = page.evaluate(PROMPT)
        check_prompt(prompt, shipped)
        values = {spec["inputs"]["added"] for spec in prompt.values() if spec["class_type"] in types}
        assert values <= {"its default"}, name
