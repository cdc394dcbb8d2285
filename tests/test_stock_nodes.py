"""ComfyUI's own nodes with Lance: none crashes, none is ignored unknown, and the page about them is true.

All nodes of the host are run, some 280 in about a minute. The page is that of one version; others may have other nodes.
"""

from __future__ import annotations

import os
from pathlib import Path

import comfyui_version
import pytest
from support.stock import page, verdicts
from support.stock.host import host
from support.stock.survey import Row, Survey, names

PAGE = Path(__file__).resolve().parent.parent / "docs" / "nodes.md"
REFRESH = "LANCE_REFRESH_NODES"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of nodes that are given what they are not made for
]
CURE = f"Look at what changed, then make it anew: {REFRESH}=1 bash scripts/test.sh tests/test_stock_nodes.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[Row]:
    with host(tmp_path_factory.mktemp("host")) as running:
        survey = Survey(running)
        found = [survey.row(name) for name in names()]
        found.sort(key=lambda row: row.name)
        yield found


def of_the_page() -> bool:
    return f"ComfyUI {comfyui_version.__version__} " in PAGE.read_text(encoding="utf-8")


def test_no_node_crashes(rows):
    crashes = [f"{row.name}: {row.crash}" for row in rows if row.crash is not None]
    assert len(rows) > 250
    assert not crashes, "\n\n".join(crashes)


def test_no_node_is_ignored_unknown(rows):
    """A node that never changes a picture is silence, unless it is known why; what is known is so."""
    if not of_the_page():
        pytest.skip(f"looked at for the page's version, not for {comfyui_version.__version__}")
    silent = {row.name for row in rows if row.silent}
    assert silent == verdicts.UNCHANGED.keys()


def test_the_page_is_true(rows):
    written = page.write(rows, comfyui_version.__version__)
    if os.environ.get(REFRESH):
        PAGE.write_text(written, encoding="utf-8")
    elif not of_the_page():
        pytest.skip(f"the page is not of ComfyUI {comfyui_version.__version__}")
    said, now = PAGE.read_text(encoding="utf-8").splitlines(), written.splitlines()
    differing = [f"- {line}" for line in said if line not in now] + [f"+ {line}" for line in now if line not in said]
    assert said == now, "\n".join([*differing, CURE])
