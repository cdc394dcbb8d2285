"""scripts/test.sh: what of its arguments reaches pytest."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from comfyui_lance import REPOSITORY

QUICK = "-n auto --dist loadfile --no-loadscope-reorder -m not (slow or server or browser)"


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        (["--quick"], QUICK),
        (["--quick", "--durations=25"], f"{QUICK} --durations=25"),
        (["-k", "a or b", "--quick"], f"{QUICK} -k a or b"),
    ],
)
def test_quick_goes_with_other_arguments(arguments, passed, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$2" = ruff ] || echo "$@"\n')
    python.chmod(0o755)
    script = Path(REPOSITORY) / "scripts" / "test.sh"
    environment = os.environ | {"LANCE_PYTHON": str(python), "LANCE_HOST_DIR": str(tmp_path / "host")}
    done = subprocess.run(["bash", script, *arguments], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.splitlines()[-1] == f"-m pytest {passed}", done.stderr
