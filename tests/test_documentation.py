"""What explains the nodes where they are used: translations, help pages and the list of error messages."""

from __future__ import annotations

import ast
import csv
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.interface import inputs, lance_nodes

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = REPOSITORY / "web" / "docs"
PICTURE = re.compile(r"!\[.+\]\((.+)\)")
GAP = "…"  # what an f-string fills in
# As an artist opens it: the node is selected, and a click on its info button shows the help panel.
SELECT = """(type) => {
    app.graph.clear()
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    app.canvas.selectNode(node)
    return [node.title, ...node.widgets.map((widget) => widget.label)]
}"""


@pytest.fixture(scope="module")
def nodes(server) -> dict[str, dict]:
    return lance_nodes(server.object_info())


def translations(language: str) -> dict:
    return json.loads((REPOSITORY / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def keys(value: dict, path: str = "") -> set[str]:
    """The paths to a translation's texts."""
    found = set()
    for key, item in value.items():
        found |= keys(item, f"{path}{key}/") if isinstance(item, dict) else {path + key}
    return found


def input_keys(node: dict) -> Iterator[str]:
    """What the page looks up for a node's inputs; a dot in a name becomes an underscore."""
    for name, settings in inputs(node["input"]):
        if settings["type"] != "COMFY_AUTOGROW_V3":
            key = name.replace(".", "_")
            yield f"{key}/name"
            yield from [f"{key}/tooltip"] if settings.get("tooltip") else []


def growing_keys(node: dict) -> Iterator[str]:
    """Growing sockets are named by the page, and have tooltips that it does not take from the schema."""
    for name, settings in inputs(node["input"]):
        if settings["type"] == "COMFY_AUTOGROW_V3":
            template = settings["template"]
            yield from (f"{name}_{template['prefix']}{i}/tooltip" for i in range(template["max"]))


def output_keys(node: dict) -> Iterator[str]:
    """An output named by its type goes by the page's own word for the type."""
    for i, (name, type) in enumerate(zip(node["output_name"], node["output"], strict=True)):
        yield from [f"{i}/name"] if name != type else []
        yield from [f"{i}/tooltip"] if node["output_tooltips"][i] else []


def test_chinese_has_every_text_and_no_other(nodes):
    wanted = set()
    for name, node in nodes.items():
        wanted |= {f"{name}/display_name", f"{name}/description"}
        wanted |= {f"{name}/inputs/{key}" for key in (*input_keys(node), *growing_keys(node))}
        wanted |= {f"{name}/outputs/{key}" for key in output_keys(node)}
    assert keys(translations("zh")) == wanted


def test_english_has_only_what_the_page_does_not_take_from_the_schema(nodes):
    growing = {f"{name}/inputs/{key}" for name, node in nodes.items() for key in growing_keys(node)}
    assert keys(translations("en")) == growing


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_server_hands_the_translations_out(server, language):
    with urllib.request.urlopen(f"{server.url}/i18n") as response:
        served = json.load(response)[language]["nodeDefs"]
    assert served == translations(language)


def test_no_translation_has_a_message_formatters_signs():
    assert not re.search(r"[@|]|\{\w*\}", json.dumps(list(texts(translations("zh"))), ensure_ascii=False))


def texts(value: dict) -> Iterator[str]:
    for item in value.values():
        yield from texts(item) if isinstance(item, dict) else [item]


def test_every_node_has_its_pages_and_there_are_no_others(nodes):
    english = {path.stem for path in PAGES.glob("*.md")}
    chinese = {path.parent.name for path in PAGES.glob("*/zh.md")}
    assert english == chinese == set(nodes)


@pytest.mark.parametrize("page", sorted(PAGES.rglob("*.md")), ids=lambda path: str(path.relative_to(PAGES)))
def test_a_page_begins_with_a_title_and_shows_a_picture(page):
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    # The page resolves a picture's address against web/docs, in whatever folder the text lies.
    assert [(PAGES / address).parent for address in PICTURE.findall(text)] == [PAGES / "images"]


def test_the_pages_pictures_are_there_and_used():
    named = {address for page in PAGES.rglob("*.md") for address in PICTURE.findall(page.read_text(encoding="utf-8"))}
    assert named == {str(path.relative_to(PAGES)) for path in (PAGES / "images").iterdir()}


def test_the_chart_shows_the_figures(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import chart

    figures = chart.read((REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8"))
    assert len(figures) == 4 and all(runs["plugin"] == 1.0 for runs in figures.values())
    assert (REPOSITORY / "docs" / "speed.svg").read_text(encoding="utf-8") == chart.draw(figures)


def test_the_chart_of_fast_settings_is_that_of_their_table(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import fast_chart

    with (REPOSITORY / "benchmarks" / "fast.csv").open(newline="") as file:
        drawn = fast_chart.draw(list(csv.DictReader(file)))
    assert (REPOSITORY / "docs" / "fast.svg").read_text(encoding="utf-8") == drawn


@pytest.mark.browser
def test_the_page_speaks_chinese(server):
    pytest.importorskip("playwright", reason="playwright is not installed")
    from comfyui_lance.dev.host import browser

    if browser.find_chromium() is None:
        pytest.skip("no Chromium or Chrome on the path")
    browser.set_settings(server.url, {"Comfy.Locale": "zh"})
    try:
        with browser.open_page(server.url) as page:
            page.wait_for_function("document.title !== 'ComfyUI'")  # the default workflow, which comes late, is open
            words = translations("zh")["LanceGuidance"]
            shown = page.evaluate(SELECT, "LanceGuidance")
            named = [item["name"] for name, item in words["inputs"].items() if name != "model"]
            page.get_by_test_id("info-button").click()
            help_panel = page.locator(".node-help-content")
            title = help_panel.locator("h1").inner_text()
            picture = help_panel.locator("img").get_attribute("src")
    finally:
        browser.set_settings(server.url, {"Comfy.Locale": "en"})
    assert shown == [words["display_name"], *named]
    assert f"# {title}\n" in (PAGES / "LanceGuidance" / "zh.md").read_text(encoding="utf-8")
    assert re.fullmatch(r"/extensions/[^/]+/docs/images/LanceGuidance\.jpg", picture)


def sentences() -> Iterator[str]:
    """Every string of the code, with a gap for each value that it fills in."""
    for folder in ("lance_model", "nodes"):
        for path in (REPOSITORY / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def quoted() -> list[str]:
    lines = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("> ") for line in lines if line.startswith("> ")]


def test_the_quoted_messages_are_the_codes_own():
    said = list(sentences())
    assert len(quoted()) > 30
    assert [quote for quote in quoted() if not any(sentence.startswith(quote) for sentence in said)] == []


def anchors(page: Path) -> set[str]:
    """The headings of a Markdown page, as GitHub names them in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("folder", [".", "docs", "benchmarks"])
def test_links_between_the_pages_lead_somewhere(folder):
    pages, broken = list((REPOSITORY / folder).glob("*.md")), []
    for page in pages:
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = urllib.parse.unquote(link).partition("#")
            target = page.parent / name if name else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.name}: {link}")
    assert pages and not broken
