"""The endurance checks in short, and loaders side by side: what goes wrong in one job leaves the next one right."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from comfyui_lance.dev.endurance import jobs
from comfyui_lance.dev.endurance.checks import checks
from comfyui_lance.lance_model import loading

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def sturdy():
    """A server of its own, as it is killed and runs out of memory."""
    with jobs.server() as server:
        jobs.prepare(server)
        yield server


@pytest.mark.parametrize("name", checks(jobs=12))
def test_the_server_survives(sturdy, name):
    checks(jobs=12)[name](sturdy)


def test_loaders_side_by_side(tiny):
    """Four threads load the same files at once, and get the same weights."""
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(loading.load, [tiny / "Lance_3B" / "model.safetensors"] * 4))
    first, *others = [
        [*model.model.state_dict().values(), *clip.cond_stage_model.parameters()] for model, clip, _ in loaded
    ]
    for weights in others:
        assert all(torch.equal(a, b) for a, b in zip(first, weights, strict=True))
    for _, clip, _ in loaded:
        tokens = clip.tokenize("a red ball")
        assert clip.encode_from_tokens_scheduled(tokens)[0][0].isfinite().all()
