"""Blueprints used in the page as an artist uses them: found by the search, dropped, connected, run."""

from __future__ import annotations

from playwright.sync_api import Page

from .browser import settled
from .server import ComfyServer

EMPTY = "() => { app.graph.clear(); app.canvas.ds.reset() }"
FOUND = "(title) => document.querySelector('#results-list [aria-selected=true]')?.textContent.includes(title)"
DROPPED = "(title) => app.graph.nodes.length === 1 && app.graph.nodes[0].title === title"
# Something to look at on the left, and on the right the node that keeps what comes out.
CONNECT = """([picture, clip]) => {
    const { graph } = app
    const [node] = graph.nodes
    const add = (type, x, y) => {
        const other = LiteGraph.createNode(type)
        graph.add(other)
        other.pos = [node.pos[0] + x, node.pos[1] + y]
        return other
    }
    const given = node.inputs.find(({ type, widget }) => !widget && ['IMAGE', 'VIDEO'].includes(type))
    if (given) {
        const source = add(given.type === 'IMAGE' ? 'LoadImage' : 'LoadVideo', -400, 0)
        source.widgets[0].value = given.type === 'IMAGE' ? picture : clip
        source.widgets[0].callback?.(source.widgets[0].value)
        source.connect(0, node, node.inputs.indexOf(given))
    }
    const keeper = { IMAGE: 'SaveImage', VIDEO: 'SaveVideo', STRING: 'PreviewAny' }[node.outputs[0].type]
    node.connect(0, add(keeper, node.size[0] + 100, 0), 0)
}"""

# Until the page has heard of the end.
RUN = """async () => {
    const ends = ['execution_success', 'execution_error']
    const heard = Promise.race(ends.map((end) => new Promise((done) => app.api.addEventListener(end, done))))
    await app.queuePrompt(0, 1)
    await heard
}"""


def drop(page: Page, title: str) -> None:
    """The blueprint alone in an empty graph, as the page's search puts it there."""
    with settled(page):
        page.evaluate(EMPTY)
    search = page.get_by_role("combobox", name="Add a node")
    while not search.is_visible():
        page.mouse.dblclick(700, 500)
        page.wait_for_timeout(500)
    search.fill(title)
    page.wait_for_function(FOUND, arg=title)
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    page.mouse.click(600, 300)  # where it hangs on the pointer
    page.wait_for_function(DROPPED, arg=title)


def run(page: Page, server: ComfyServer, picture: str, clip: str = "lance_moving.mp4") -> dict:
    """The finished run's entry in ComfyUI's history."""
    with settled(page):
        page.evaluate(CONNECT, [picture, clip])
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    entry = server.wait(server.queue(prompt))
    with settled(page):
        page.evaluate(RUN)  # once more by the page, which shows the results
        server.wait_until_idle()
    return entry
