"""The plugin computes what the reference computes, through ComfyUI's real samplers, in float32 on the CPU.

The cases come from the folder named by LANCE_PARITY_CASES, by default the repository's own.
"""

import pytest
import torch
from comfyui_lance.lance_model import language, media
from comfyui_lance.lance_model.positions import position_ids
from comfyui_lance.lance_model.sequence import CONDITIONING, IM_END
from comfyui_lance.nodes.guidance import LanceGuidance
from support.parity_case import ANSWERS, CASES, Case, answered, asked, encoded, given_frames, load_case
from support.sampling import Probe, sample, schedule


def check_sequence(conditioning, case: Case, suffix: str = "") -> None:
    """Token ids, labels and position ids are the reference's, which closes the target with one more token."""
    sequence = conditioning[0][1][CONDITIONING].with_target(case["latent"].shape[:3])
    positions = torch.cat(position_ids(sequence), dim=1)
    assert torch.equal(positions, case["position_ids" + suffix][:, :-1])
    if not suffix:
        assert [*sequence.token_ids(), IM_END] == case["input_ids"].tolist()
        assert sequence.labels() == case["modality"].tolist()[:-1]


def check_vision(case: Case, seen: list[media.Medium]) -> None:
    """Patches equal the reference's exactly (every 37th row of all media), embeddings within 1e-4."""
    rows = torch.cat([medium.patches for medium in seen])[::37]
    assert [medium.grid for medium in seen] == [tuple(grid) for grid in case["vit_grid_thw"].tolist()]
    assert torch.equal(rows, case["vit_patch_rows"])
    assert (torch.cat([medium.embeddings for medium in seen]) - case["vit_embeds"]).abs().max() < 1e-4


def check_sampling(model, case: Case, positive, negative, suffix: str = "", **kwargs) -> None:
    """First velocities within 1e-4, final latents within 1e-3, and no more passes than the reference.

    The suffix names another unconditional branch than the trained one.
    """
    settings = case.settings
    probe = Probe()
    sigmas = schedule(settings["steps"], settings["shift"])
    out = sample(probe.attach(model), positive, negative, case.latent("noise"), sigmas, settings["cfg"], **kwargs)
    for branch, name in enumerate(("velocity_cond", "velocity_uncond" + suffix)):
        if name in case.tensors:
            expected = case.velocity(name)
            assert (probe.velocities[branch][:, :, -expected.shape[2] :] - expected).abs().max() < 1e-4
    assert (out - case.latent("latent" + suffix)).abs().max() < 1e-3
    assert probe.evaluations == settings["evaluations"]


@pytest.mark.parametrize("name", CASES)
def test_what_is_made(name, lance, parity_folder):
    case = load_case(parity_folder, name)
    positive, negative, seen = encoded(case, name, lance)
    if seen:
        check_vision(case, seen)
    check_sequence(positive, case)
    if "position_ids_uncond" in case.tensors:
        check_sequence(negative, case, "_uncond")
    check_sampling(lance[0], case, positive, negative, **given_frames(case, name))


@pytest.mark.parametrize("name", [name for name in CASES if name != "t2i_no_cfg"])
def test_what_is_made_as_published(name, lance, parity_folder, contexts):
    """With the unconditional branch of the reference's cached sampler, and no context token more than with its own."""
    case = load_case(parity_folder, name)
    positive, negative, _ = encoded(case, name, lance)
    settings = given_frames(case, name)
    sample(lance[0], positive, negative, case.latent("noise"), schedule(2, 3.5), **settings)
    trained = contexts[:]
    contexts.clear()
    model = LanceGuidance.execute(lance[0], 0.4, 1.0, "global", "published").result[0]
    check_sampling(model, case, positive, negative, "_cached", **settings)
    assert contexts == trained


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name, lance, parity_folder):
    case = load_case(parity_folder, name)
    request = asked(case, name, lance)
    check_vision(case, request.media)
    sequence = language.prepare(lance[1], request).question(request)
    assert sequence.token_ids() == case["input_ids"].tolist()
    positions = torch.cat(position_ids(sequence), dim=1)
    assert torch.equal(positions, case["position_ids"][:, : positions.shape[1]])

    ids, logits = answered(case, request, lance)
    expected = case["generated_ids"].tolist()
    assert ids == (expected[: expected.index(IM_END)] if IM_END in expected else expected)
    assert (logits[case["first_logits_top_ids"]] - case["first_logits_top"]).abs().max() < 1e-4
