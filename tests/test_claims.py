"""The variants in training that stand for the paper's claims do what they say."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from comfyui_lance.lance_model import nano, positions
from comfyui_lance.lance_model.layer import GEN
from comfyui_lance.training import claims, evaluation, loss, model, packed, train
from comfyui_lance.training.claims import Scale, Variant
from comfyui_lance.training.report import Report
from safetensors import safe_open

pytestmark = pytest.mark.slow
SMALL = Scale(steps=2, layers=1, batch=2, edits=8, held_out=4, prompts=1)


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(comfy.model_management, "in_training", False)  # and again after the test


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of runs, with the examples that they share."""
    folder = tmp_path_factory.mktemp("claims")
    claims.pools(folder / "pools.pt", SMALL.edits, "trained on")
    return folder


def trained(folder, out, variant: Variant, scale: Scale = SMALL) -> None:
    out.mkdir()
    vae = packed.read_autoencoder(nano.PACKED).fold()
    with variant.in_place():
        train.train(0, variant.settings(out, scale, 0), folder / "pools.pt", vae, claims.shipped_vision(), Report(out))


@pytest.mark.parametrize("mape", [True, False])
def test_without_mape_positions_are_plain_in_training(mape, folder, tmp_path, monkeypatch):
    known, embed = [], loss.embed

    def embedded(*args):
        tokens = embed(*args)
        known.append((tokens.sequence, positions.position_ids(tokens.sequence)))
        return tokens

    monkeypatch.setattr(loss, "embed", embedded)
    trained(folder, tmp_path / "out", Variant(("edit",), mape=mape), replace(SMALL, steps=4))
    assert known and all(sequence.mape for sequence, _ in known)
    for sequence, its in known:
        assert mape != torch.equal(
            torch.cat(its, 1), torch.cat(positions.position_ids(replace(sequence, mape=False)), 1)
        )


def test_one_expert_is_packed_as_both_and_loads(folder, tmp_path, monkeypatch):
    trainee = model.Trainee([0], None, one_expert=True)
    pairs = [
        (name, name.replace(GEN, "")) for name, _ in trainee.named_parameters(remove_duplicate=False) if GEN in name
    ]
    assert pairs and all(trainee.get_parameter(one) is trainee.get_parameter(other) for one, other in pairs)
    assert not any(GEN in name for name, _ in trainee.named_parameters())

    trained(folder, tmp_path / "out", Variant(one_expert=True))
    made = tmp_path / "out" / train.SUPERVISED
    with safe_open(made, "pt") as file:
        twins = [name for name in file.keys() if GEN in name]
        assert len(twins) == len([name for name, _ in pairs if ".layers." not in name or ".layers.0." in name])
        assert all(torch.equal(file.get_tensor(name), file.get_tensor(name.replace(GEN, ""))) for name in twins)
    assert list(evaluation.evaluate(made, 1, 2, tasks=["t2i"])) == ["t2i"]


def test_a_task_alone_sees_what_it_sees_among_others(folder, tmp_path, monkeypatch):
    seen = []

    def noted(trainee, pools, batch, dropped):
        seen.append((batch[0].task, [(sample.prompt, sample.sources, sample.target) for sample in batch], dropped))
        return sum(p.sum() for p in trainee.parameters()) * 0

    monkeypatch.setattr(train, "loss_of", noted)
    scale = replace(SMALL, steps=8)
    trained(folder, tmp_path / "joint", Variant(), scale)
    joint, seen[:] = list(seen), []
    trained(folder, tmp_path / "alone", Variant(("edit",)), scale)
    assert {task for task, *_ in joint} == set(claims.MIXTURE) and len(joint) == 8 * train.MICROBATCHES
    assert seen == [one for one in joint if one[0] == "edit"]


def test_a_run_goes_on_where_it_was_stopped_and_is_not_made_again(folder, monkeypatch):
    monkeypatch.setattr(train.State, "EVERY", 1)
    loss_of, count = train.loss_of, []

    def stopped(*args):
        count.append(args)
        if len(count) > train.MICROBATCHES:
            raise KeyboardInterrupt
        return loss_of(*args)

    def run():
        return claims.run(folder, "one expert", 0, SMALL)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "loss_of", stopped)
        run()
    state = folder / "one expert 0" / "state.pt"
    assert torch.load(state, weights_only=True)["step"] == 1
    measures = run()
    assert torch.load(state, weights_only=True)["step"] == 2
    assert measures["losses"].keys() == claims.MIXTURE.keys() and measures["right"].keys() == {"t2i", "edit", "caption"}
    monkeypatch.setattr(claims, "train", None)
    assert run() == measures
