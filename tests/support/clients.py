"""The example clients, run as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from comfyui_lance import REPOSITORY
from PIL import Image

CLIENTS = REPOSITORY / "clients"
NOWHERE = "http://127.0.0.1:9"

LOGIN = f"{NAME}:kestrel%3Aheron%20w%40gull%25"


def example(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(CLIENTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)


def write(path: Path, prompt: dict) -> Path:
    path.write_text(json.dumps(prompt))
    return path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Sums in another order can move a pixel by a level."""
    return a.shape == b.shape and np.abs(a - b).max() <= 2
