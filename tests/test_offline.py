"""Nothing is asked of the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkpoints import MODEL

pytestmark = pytest.mark.slow


OFFLINE = """
import socket, sys

def refuse(name, own):
    def connect(*arguments):
        address = arguments[-1] if name != "getaddrinfo" else arguments
        if not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost"):
            return own(*arguments)
        raise SystemExit(f"{name} was asked for {address}")
    return connect

for place, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
    setattr(place, name, refuse(name, getattr(place, name)))
import conftest, torch
from comfyui_lance.lance_model import loading
from support.sampling import sample, schedule
model, clip, vae = loading.load(sys.argv[1])
positive = clip.encode_from_tokens_scheduled(clip.tokenize("a red ball"))
print(vae.decode(sample(model, positive, positive, torch.randn(1, 48, 1, 4, 4), schedule(2, 3.5))).shape)
"""


def test_nothing_is_asked_of_the_network(tiny):
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tiny / MODEL)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0 and "torch.Size([1, 1, 64, 64, 3])" in done.stdout, done.stderr
