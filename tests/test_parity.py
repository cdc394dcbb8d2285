"""The plugin computes what the reference computes, through ComfyUI's real samplers, in float32 on the CPU."""

import pytest
import torch
from comfyui_lance.lance_model import tasks
from comfyui_lance.lance_model.diffusion import CONDITIONING
from comfyui_lance.lance_model.positions import position_ids
from comfyui_lance.lance_model.sequence import IM_END, Segment, Label
from dataclasses import replace
from parity_case import load_case
from sampling import Probe, encode, sample, schedule


def check_sequence(conditioning, case, grid, suffix=""):
    """Token ids (of the conditional sequence), labels and position ids are the reference's."""
    sequence = conditioning[0][1][CONDITIONING].with_target(grid)
    # The reference closes the target with one more token, which nothing attends to.
    closed = replace(sequence, segments=(*sequence.segments[:-1], sequence.segments[-1]))
    positions = torch.cat(position_ids(closed), dim=1)
    expected = case["position_ids" + suffix]
    assert torch.equal(positions, expected[:, : positions.shape[1]]) and expected.shape[1] == positions.shape[1] + 1
    if not suffix:
        assert sequence.token_ids() + [IM_END] == case["input_ids"].tolist()
        assert sequence.labels() == case["modality"].tolist()[:-1]


def check_sampling(model, case, positive, negative, **kwargs):
    """First velocities and final latents are the reference's."""
    settings = case.settings
    probe = Probe()
    sigmas = schedule(settings["steps"], settings["shift"])
    out = sample(probe.attach(model), positive, negative, case.latent("noise"), sigmas, settings["cfg"], **kwargs)
    for branch, name in enumerate(("velocity_cond", "velocity_uncond")):
        if name in case.tensors:
            velocity = probe.velocities[branch][:, :, -case.velocity(name).shape[2] :]
            assert (velocity - case.velocity(name)).abs().max() < 1e-4
    assert (out - case.latent("latent")).abs().max() < 1e-3
    assert probe.passes <= settings["evaluations"]


@pytest.mark.parametrize("name", ["t2i", "t2i_late_steps", "t2i_no_cfg", "t2v"])
def test_text_to(name, lance, parity_folder):
    case = load_case(parity_folder, name)
    model, clip, _ = lance
    target = "video" if case.settings["task"] == "t2v" else "image"
    positive, negative = encode(clip, case.settings["prompt"], target=target), encode(clip, "", target=target)
    grid = case["latent"].shape[:3]
    check_sequence(positive, case, grid)
    if "position_ids_uncond" in case.tensors:
        check_sequence(negative, case, grid, "_uncond")
    check_sampling(model, case, positive, negative)
