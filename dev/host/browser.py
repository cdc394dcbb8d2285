"""ComfyUI's page in a headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, Request, sync_playwright

# The newer of the page's two renderers, on or off.
NODES_2 = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
# After what the page has to do now, and two frames.
SHOWN = """() => new Promise((done) =>
    requestIdleCallback(() => requestAnimationFrame(() => requestAnimationFrame(done))))"""
PATIENCE = 120  # seconds, for a busy machine
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", MAC)
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
)


def find_chromium() -> str | None:
    """$CHROMIUM, else the first Chromium or Chrome on the path."""
    return next(filter(None, (shutil.which(name) for name in (os.environ.get("CHROMIUM", ""), *NAMES))), None)


def set_settings(url: str, settings: dict) -> None:
    """The user's settings on the server."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/settings", json.dumps(settings).encode(), headers)
    urllib.request.urlopen(request).close()


@contextmanager
def open_page(url: str, query: str = "", width: int = 1600, height: int = 900) -> Iterator[Page]:
    """The page of the server at `url`, ready for use, past the tutorial."""
    set_settings(url, {"Comfy.TutorialCompleted": True})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": width, "height": height})
        visit(page, f"{url}/{query}")
        yield page
        browser.close()


def visit(page: Page, url: str) -> None:
    """Until the page is ready for use."""
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(url)
    page.wait_for_function("window.app?.vueAppReady")


@contextmanager
def settled(page: Page) -> Iterator[None]:
    """At its end all that the page asked of the server meanwhile has come and is shown."""
    asked: set[Request] = set()
    listeners = {
        "request": lambda request: request.resource_type == "media" or asked.add(request),  # a clip comes as it plays
        "requestfinished": lambda request: asked.discard(request),
        "requestfailed": lambda request: asked.discard(request),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    yield
    end = time.monotonic() + PATIENCE
    page.evaluate(SHOWN)
    while asked:
        if time.monotonic() > end:
            raise TimeoutError(f"The page still waits for {', '.join(request.url for request in asked)}")
        page.wait_for_timeout(20)
        page.evaluate(SHOWN)
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
