"""scripts/test.sh: what of its arguments reaches pytest. scripts/train_shipped.sh: what is trained from what."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from comfyui_lance import REPOSITORY
from comfyui_lance.training.train import Settings

SCRIPTS = Path(REPOSITORY) / "scripts"
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
    environment = os.environ | {"LANCE_PYTHON": str(python), "LANCE_HOST_DIR": str(tmp_path / "host")}
    command = ["bash", SCRIPTS / "test.sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.splitlines()[-1] == f"-m pytest {passed}", done.stderr


# In Python's place: what it is asked for goes into a file, and a training leaves a model.
TRAINS = """#!/bin/sh
[ "$2" = comfyui_lance.training ] || exit 0
echo "$@" >>"$0.asked"
mkdir -p "$4" && echo "$4" >"$4/nano.safetensors"
"""


def test_what_ships_is_trained_leg_by_leg(tmp_path, monkeypatch):
    """Each from the model before; where it was stopped it goes on, and leaves out what is there."""
    python, asked = tmp_path / "python", tmp_path / "python.asked"
    python.write_text(TRAINS)
    python.chmod(0o755)
    environment = os.environ | {"LANCE_PYTHON": str(python), "LANCE_HOST_DIR": str(tmp_path / "host")}

    def trained() -> list[Settings]:
        command = ["bash", SCRIPTS / "train_shipped.sh", tmp_path / "out"]
        subprocess.run(command, check=True, timeout=60, env=environment)
        lines = asked.read_text().splitlines() if asked.exists() else []
        asked.unlink(missing_ok=True)
        found = []
        for line in lines:
            monkeypatch.setattr("sys.argv", line.split()[1:])
            found.append(Settings.from_command_line())
        return found

    legs = trained()
    models = [leg.out / "nano.safetensors" for leg in legs]
    assert [leg.start for leg in legs] == [None, *models[:-1]]
    assert [leg.reinforcement_rounds > 0 for leg in legs] == [False, False, False, True]
    assert (tmp_path / "out" / "nano.safetensors").read_text() == models[-1].read_text()
    assert trained() == []
    models[1].unlink()
    assert [leg.out for leg in trained()] == [legs[1].out]
