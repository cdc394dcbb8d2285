"""Automatic sizes follow the model: its own for the demonstration model, Lance's for all others."""

from __future__ import annotations

import logging

import pytest
import torch
from comfyui_lance.nodes.answer import LanceAnswer
from comfyui_lance.nodes.edit import LanceEncodeEdit
from comfyui_lance.nodes.frames import LanceImageToVideo
from comfyui_lance.nodes.latent import AUTOMATIC, EmptyLanceLatent
from comfyui_lance.nodes.reference import LanceEncodeReferences
from comfyui_lance.nodes.resolution import DEMONSTRATION, chosen_resolution
from support.pictures import picture

pytestmark = pytest.mark.usefixtures("kept_memory")

PICTURE, CLIP = AUTOMATIC


def empty(model, size: str, frames: int = 1) -> tuple[int, ...]:
    """Frames, height and width of the latent."""
    return tuple(EmptyLanceLatent.execute({"size": size}, frames, 1, model).args[0]["samples"].shape[2:])


def test_an_empty_latent_is_what_the_model_is_at_its_best_in(lance, nano):
    assert (empty(lance[0], PICTURE), empty(nano[0], PICTURE)) == ((1, 48, 48), (1, 4, 4))
    assert (empty(lance[0], CLIP), empty(nano[0], CLIP)) == ((13, 30, 53), (3, 4, 4))
    assert empty(nano[0], CLIP, 17) == (5, 4, 4)


@pytest.mark.parametrize(
    ("size", "frames", "words"),
    [(PICTURE, 1, "Connect the MODEL"), (CLIP, 9, "Connect the MODEL"), (PICTURE, 9, "Choose automatic clip")],
)
def test_what_an_automatic_size_lacks_is_said(size, frames, words, nano):
    with pytest.raises(ValueError, match=words):
        empty(None if "Connect" in words else nano[0], size, frames)


def test_another_models_size_is_not_guessed(nano):
    with pytest.raises(ValueError, match="another model's"):
        empty(nano[1].patcher, PICTURE)


def side(encoded) -> tuple[int, ...]:
    return tuple(encoded["samples"].shape[-2:])


def test_sources_and_references_come_in_the_models_size(lance, nano):
    for (_, clip, vae), size in ((lance, (48, 48)), (nano, (4, 4))):
        edit = LanceEncodeEdit.execute(clip, vae, picture(96, 96), "make it blue", "automatic").args
        assert side(edit[2][0]) == size
        pair = LanceEncodeReferences.execute(clip, vae, {"image0": picture(96, 96)}, "it", "image", "automatic").args
        (_, options), *_ = pair[0]
        grids = [segment.grid for segment in options["lance_sequence"].segments if segment.grid]
        assert grids[1] == (1, *size)


def test_a_clip_from_a_picture_is_as_long_as_the_model_is_at_its_best_with(nano):
    latent = LanceImageToVideo.execute(nano[2], "automatic", 1, 1, picture(96, 96)).args[0]
    assert latent["samples"].shape[2:] == (3, 4, 4)
    assert torch.equal(latent["noise_mask"].flatten(2)[..., :16].unique(), torch.zeros(1))


def test_an_answer_sees_pictures_as_the_model_was_trained(nano):
    node = LanceAnswer.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    task = {"task": "question", "question": "What color is the circle?"}
    given = {"images": {"image0": picture(200, 200)}}
    answers = [
        node.execute(*nano[:2], task, 8, {"sampling": "off"}, **given, image_resolution=resolution).args[0]
        for resolution in ("automatic", DEMONSTRATION)
    ]
    assert answers[0] == answers[1]


def test_a_resolution_that_is_another_models_is_noted(lance, nano, caplog):
    with caplog.at_level(logging.WARNING):
        chosen_resolution("image 768", "image", lance[1])
        chosen_resolution(DEMONSTRATION, "image", nano[1])
        assert not caplog.records
        chosen_resolution(DEMONSTRATION, "image", lance[1])
        chosen_resolution("image 768", "image", nano[1])
    assert len(caplog.records) == 2
