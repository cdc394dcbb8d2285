"""What nodes for other models leave in a prompt, a latent or a MODEL is refused in a sentence, not passed over."""

from __future__ import annotations

import comfy.nested_tensor
import node_helpers
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfyui_lance.lance_model import language

import nodes

NOISE = torch.zeros(1, 48, 1, 4, 4)
PICTURES = (
    "concat_image", "context_latents", "control_video", "face_video_pixels", "lq_latent", "pose_video_latent",
    "reference_latents_text_embeds", "reference_motion", "stable_cascade_prior", "time_dim_replace", "vace_frames",
)  # fmt: skip
SOUNDS = ("audio_embed", "reference_audio_timbre_latents")


def ksample(model, latent, pair) -> None:
    nodes.KSampler().sample(model, 1, 1, 4.0, "euler", "simple", *pair, {"samples": latent})


@pytest.fixture()
def pair(lance):
    return language.encode_pair(lance[1], "A red fox sleeps in the snow.")


@pytest.mark.parametrize("key", [*PICTURES, *SOUNDS])
def test_media_for_other_models_are_said(key, lance, pair):
    positive = node_helpers.conditioning_set_values(pair[0], {key: torch.zeros(1, 16, 1, 8, 8)})
    says = "sound" if key in SOUNDS else "picture"
    with pytest.raises(ValueError, match=f"Lance does not read .*{says}.*"):
        ksample(lance[0], NOISE, (positive, pair[1]))


def test_a_latent_with_sound_is_said(lance, pair):
    latent = comfy.nested_tensor.NestedTensor((torch.zeros(1, 24, 2, 4, 4), torch.zeros(1, 32, 2, 40)))
    with pytest.raises(ValueError, match="Lance samples the latent of a picture or a clip"):
        ksample(lance[0], latent, pair)


@pytest.mark.parametrize("shape", [(1, 48, 0, 4, 4), (1, 48, 1, 0, 4)])
def test_a_latent_of_which_nothing_is_left_is_said(shape, lance, pair):
    with pytest.raises(ValueError, match="nothing in this latent"):
        ksample(lance[0], torch.zeros(shape), pair)


def test_scaled_positions_are_said(lance, pair):
    model = lance[0].clone()
    model.set_model_rope_options(scale_x=1.0, shift_x=0.0, scale_y=1.0, shift_y=0.0, scale_t=1.0, shift_t=0.0)
    ksample(model, NOISE, pair)
    model.set_model_rope_options(scale_x=1.5, shift_x=0.0, scale_y=1.0, shift_y=0.0, scale_t=1.0, shift_t=0.0)
    with pytest.raises(ValueError, match="ScaleROPE"):
        ksample(model, NOISE, pair)


def test_context_windows_along_channels_are_said(lance, pair):
    settings = {"context_stride": 1, "closed_loop": False, "fuse_method": "pyramid", "dim": 1, "freenoise": False}
    model = ContextWindowsManualNode.execute(lance[0], 16, 4, "standard_static", **settings).result[0]
    with pytest.raises(ValueError, match="Set dim to 2"):
        ksample(model, NOISE, pair)
