"""Honest use: what is built from ComfyUI's nodes and ours gives a picture or says one sentence, every time the same.

A graph that fails is printed as the HTTP API takes it. LANCE_HONEST_CASES and LANCE_HONEST_SEED try more, and others.
"""

from __future__ import annotations

import json
import os

import pytest
import torch
from support.stock.honest import build
from support.stock.host import Host, Outcome, host

CASES = int(os.environ.get("LANCE_HONEST_CASES", 100))
SEED = int(os.environ.get("LANCE_HONEST_SEED", 0))
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # samplers warn at few steps
TWICE = 10  # every tenth graph is run again, by then with nothing left in any cache
BEYOND = 3.0  # of 0 to 1, until saving clips it: ComfyUI leaves what a small autoencoder decodes as it is
DIFFERENT = 1e-3  # a sum in another order moves a pixel less


def wrong(outcome: Outcome) -> str | None:
    """What is wrong with what a graph gave, or None."""
    if outcome.failure is not None:
        return None if outcome.failure.raised and outcome.failure.type != "refused" else str(outcome.failure)
    (picture,), (sampled,), (given,) = (outcome.seen[name] for name in ("picture", "sampled", "given"))
    shape = tuple(sampled["samples"].shape)
    if shape != tuple(given["samples"].shape):
        return f"a latent {tuple(given['samples'].shape)} came out as {shape}"
    batch, _, t, h, w = shape
    if tuple(picture.shape) != (batch * (4 * t - 3), 16 * h, 16 * w, 3):
        return f"a latent {shape} was decoded to {tuple(picture.shape)}"
    if not picture.isfinite().all() or picture.min() < -BEYOND or picture.max() > 1 + BEYOND:
        return f"the picture goes from {picture.min()} to {picture.max()}"
    return "the picture is all one colour" if picture.clamp(0, 1).std() < 1e-3 else None


def differs(a: Outcome, b: Outcome) -> bool:
    if a.failure is not None or b.failure is not None:
        return str(a.failure) != str(b.failure)
    x, y = a.seen["picture"][0], b.seen["picture"][0]
    return x.shape != y.shape or bool((x - y).abs().max() > DIFFERENT)


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Host:
    with host(tmp_path_factory.mktemp("host")) as running:
        yield running


def test_random_graphs_give_a_picture_or_a_sentence_and_equal_runs_are_equal(running):
    outcomes: dict[int, Outcome] = {}
    failures, pictures = [], 0
    for seed in range(SEED, SEED + CASES):
        outcome = running.run(build(seed))
        problem = wrong(outcome)
        if problem is not None:
            failures.append((seed, problem))
        pictures += outcome.failure is None
        if seed % TWICE == 0:
            outcomes[seed] = outcome
    running.executor.reset()
    again = {seed: running.run(build(seed)) for seed in outcomes}
    failures += [(seed, "it came out otherwise") for seed in again if differs(outcomes[seed], again[seed])]
    told = "\n\n".join(f"Graph {seed}: {problem}\n{json.dumps(build(seed))}" for seed, problem in failures)
    assert not failures, f"{len(failures)} of {CASES}\n{told}"
    assert pictures > CASES / 2


def test_a_constant_picture_and_a_wrong_size_are_noticed():
    latent = {"samples": torch.zeros(1, 48, 1, 4, 4)}
    seen = {"sampled": [latent], "given": [latent]}
    assert wrong(Outcome(seen | {"picture": [torch.rand(1, 64, 64, 3)]})) is None
    assert "one colour" in wrong(Outcome(seen | {"picture": [torch.full((1, 64, 64, 3), 0.5)]}))
    assert "decoded" in wrong(Outcome(seen | {"picture": [torch.rand(1, 64, 32, 3)]}))
    assert "goes from" in wrong(Outcome(seen | {"picture": [torch.full((1, 64, 64, 3), float("nan"))]}))
