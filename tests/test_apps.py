"""App mode: each workflow shows the few things that a person sets, and the result."""

from __future__ import annotations

import json

import pytest
from comfyui_lance.dev.host import workflows

pytest.importorskip("playwright", reason="playwright is not installed")
from comfyui_lance.dev.host import browser  # noqa: E402
from playwright.sync_api import expect  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser.find_chromium() is None, reason="no Chromium or Chrome on the path"),
]

GIVEN = {"image", "file", "folder"}
SAID = {"prompt", "question", "style"}
CONTROL = "input, textarea, button:not([data-testid]), [role=combobox]"


@pytest.fixture(scope="module")
def page(server):
    with browser.open_page(server.url) as page:
        yield page


def opened(page, template: str) -> list[str]:
    """The labels of what app mode shows of a workflow."""
    graph = json.loads((workflows.WORKFLOWS / f"{template}.json").read_text())
    graph["extra"]["linearMode"] = True
    page.evaluate("async ([graph, name]) => await app.loadGraphData(graph, true, true, name)", [graph, template])
    items = page.get_by_test_id("app-mode-widget-item")
    shown = items.filter(has=page.locator(CONTROL))
    expect(shown).to_have_count(len(graph["extra"]["linearData"]["inputs"]))
    expect(items).to_have_count(shown.count())
    return items.get_by_test_id("builder-widget-label").all_inner_texts()


@pytest.mark.parametrize("name", workflows.names())
def test_app_mode_shows_what_a_person_sets(page, name):
    labels = set(opened(page, workflows.template(name)))
    prompt = workflows.load(name)
    assert bool(labels & GIVEN) == any(node["class_type"].startswith("Load") for node in prompt.values())
    assert labels & SAID or name == "caption_to_video"
    assert bool(labels & {"size", "resolution"}) == bool(workflows.of_type(prompt, "KSampler"))
    assert ("seed" in labels) == bool(workflows.of_type(prompt, "KSampler"))
    assert "model" in labels


@pytest.mark.parametrize("name", workflows.APPS)
def test_an_app_is_the_workflow_opened_in_app_mode(name):
    plain, app = (
        json.loads((workflows.WORKFLOWS / f"{workflows.template(name)}{suffix}.json").read_text())
        for suffix in ("", ".app")
    )
    assert app["extra"].pop("linearMode") is True and app == plain


def run(page) -> None:
    tour = page.get_by_role("button", name="Skip", exact=True)  # newer pages offer one
    if tour.is_visible():
        tour.click()
    page.get_by_test_id("linear-run-button").get_by_text("Run", exact=True).click()


@pytest.mark.parametrize("name, shown", [("text_to_image", "img[src*=text_to_image]"), ("text_to_video", "video")])
def test_an_app_shows_its_result(page, name, shown):
    opened(page, f"{workflows.template(name)}.app")
    run(page)
    page.locator(shown).first.wait_for(timeout=60_000)
    assert page.get_by_test_id("error-overlay").all_inner_texts() == []


def test_an_app_shows_its_answer(page):
    opened(page, f"{workflows.template('image_question')}.app")
    page.get_by_test_id("app-mode-widget-item").locator("textarea").fill("What color is the square?")
    run(page)
    page.get_by_text("orange", exact=True).locator("visible=true").first.wait_for(timeout=60_000)
