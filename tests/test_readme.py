"""The README's Python example, as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent


def test_the_readmes_example_captions_a_folder(server, tmp_path):
    """Its own lines, on the weights and the server of the tests."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"\n\n((?:    .*\n|\n)*    import pathlib, client\n(?:    .*\n|\n)*)", readme)
    (tmp_path / "api").symlink_to(REPOSITORY / "api")
    (tmp_path / "pictures").mkdir()
    for name, color in (("fox", (200, 80, 0)), ("owl", (0, 80, 200))):
        Image.new("RGB", (64, 64), color).save(tmp_path / "pictures" / f"{name}.jpg")
    lines = ["import client", f"client.SERVER = {server.url!r}", *textwrap.dedent(block).strip().splitlines()]
    (tmp_path / "example.py").write_text("\n".join(lines))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "clients")}
    command = [sys.executable, tmp_path / "example.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / "pictures" / f"{name}.txt").read_text().strip() for name in ("fox", "owl"))
