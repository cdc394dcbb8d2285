"""ComfyUI's page in a headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

# The newer of the page's two renderers, on or off.
NODES_2 = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
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
        page.goto(f"{url}/{query}", timeout=90_000)
        page.wait_for_function("window.app?.vueAppReady", timeout=90_000)
        yield page
        browser.close()
