"""Guidance and patches of ComfyUI's own nodes: each does what it says, or one sentence says why it does not."""

import comfy.controlnet
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_flux import FluxGuidance
from comfy_extras.nodes_ip2p import InstructPixToPixConditioning
from comfy_extras.nodes_lumina2 import RenormCFG
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple
from comfyui_lance.lance_model import language, media
from comfyui_lance.lance_model.sequence import Label
from sampling import sample, schedule
from test_sampling import ksample, relative

import nodes

PROMPT = "A red fox sleeps under a birch tree in the snow."


@pytest.fixture()
def noise() -> torch.Tensor:
    return torch.randn(1, 48, 1, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture()
def pair(lance):
    return language.encode_pair(lance[1], PROMPT)


def branches(model) -> tuple[object, list]:
    """The model, and a list that gets noise level, cond and uncond predictions of each step."""
    model, seen = model.clone(), []

    def note(args):
        seen.append((float(args["sigma"][0]), *args["conds_out"]))
        return args["conds_out"]

    model.set_model_sampler_pre_cfg_function(note)
    return model, seen


def test_an_unconditional_branch_alone_is_computed_at_every_noise_level(lance, pair, noise):
    skipping = SkipLayerGuidanceDiTSimple.execute(lance[0], 0.0, 1.0, "1", "").result[0]
    model, seen = branches(skipping)
    ksample(model, noise, pair, 8)
    assert min(sigma for sigma, *_ in seen) < 0.4
    for _, cond, uncond in seen:
        assert uncond.abs().max() > 0.1 and relative(uncond, cond) > 1e-4


def test_skip_layer_guidance_changes_the_picture(lance, pair, noise):
    plain = ksample(lance[0], noise, pair, 4)
    for model in (
        SkipLayerGuidanceDiTSimple.execute(lance[0], 0.0, 1.0, "1", "").result[0],
        SkipLayerGuidanceDiT.execute(lance[0], 3.0, 0.0, 1.0, "1", "").result[0],
    ):
        assert relative(ksample(model, noise, pair, 4), plain) > 1e-3


def test_renorm_cfg_limits_the_norm_of_what_is_predicted(lance, pair, noise):
    model = RenormCFG.execute(lance[0], 100.0, 1.0).result[0]
    model, seen = branches(model)
    guided = []
    model.set_model_sampler_post_cfg_function(lambda args: guided.append(args["denoised"]) or args["denoised"])
    assert relative(ksample(model, noise, pair, 4), ksample(lance[0], noise, pair, 4)) > 1e-4
    for (_, cond, uncond), result in zip(seen, guided):
        expected = uncond + 4 * (cond - uncond)
        expected *= min(1.0, float(cond.norm() / expected.norm()))
        assert torch.allclose(result, expected, atol=1e-4)


def test_renorm_cfg_leaves_guidance_out_above_its_limit(lance, pair, noise):
    never = RenormCFG.execute(lance[0], 0.0, 1.0).result[0]
    assert torch.allclose(ksample(never, noise, pair, 4), ksample(lance[0], noise, pair, 4, cfg=1.0), atol=1e-4)


def video_edit(clip):
    frames = torch.rand(9, 64, 96, 3, generator=torch.Generator().manual_seed(5))
    seen = media.see(frames, "image 256")
    source = media.Medium(seen.patches, seen.grid, torch.randn(1, 48, 3, 4, 6), Label.SOURCE)
    return language.encode_pair(clip, PROMPT, target="video", seen=[source])


def windows(model, length):
    return ContextWindowsManualNode.execute(model, length, 1, "standard_static", 1, False, "pyramid", 2, False).result[
        0
    ]


@pytest.mark.parametrize(("frames", "length"), [(3, 2), (5, 3)])
def test_context_windows_on_a_video_edit_are_refused(frames, length, lance):
    noise = torch.randn(1, 48, frames, 4, 6)
    with pytest.raises(ValueError, match="Context windows do not work on edits.*in parts"):
        ksample(windows(lance[0], length), noise, video_edit(lance[1]), 1)


def test_context_windows_work_on_a_clip_from_text(lance):
    pair = language.encode_pair(lance[1], PROMPT, target="video")
    noise = torch.randn(1, 48, 5, 4, 6, generator=torch.Generator().manual_seed(1))
    out = ksample(windows(lance[0], 3), noise, pair, 4)
    assert out.isfinite().all() and relative(out, ksample(lance[0], noise, pair, 4)) > 1e-3


class NoControl(comfy.controlnet.ControlBase):
    """A ControlNet without a model."""

    def copy(self):
        return NoControl()


def with_boxes(conditioning, model):
    return [[c, values | {"gligen": ("position", model, [])}] for c, values in conditioning]


@pytest.mark.parametrize(
    ("add", "says"),
    [
        (
            lambda c, model, vae: ReferenceLatent.execute(c, {"samples": torch.zeros(1, 48, 1, 4, 6)}).result[0],
            "Encode Ref",
        ),
        (lambda c, model, vae: FluxGuidance.execute(c, 3.5).result[0], "set CFG in the sampler"),
        (
            lambda c, model, vae: InstructPixToPixConditioning.execute(c, c, torch.rand(1, 64, 96, 3), vae).result[0],
            "Use Lance Encode Image Edit",
        ),
        (lambda c, model, vae: nodes.unCLIPConditioning().apply_adm(c, object(), 1.0, 0.0)[0], "unCLIP"),
        (
            lambda c, model, vae: nodes.ControlNetApply().apply_controlnet(
                c, NoControl(), torch.rand(1, 64, 96, 3), 1.0
            )[0],
            "Co",
        ),
        (lambda c, model, vae: with_boxes(c, model), "GLIGEN"),
    ],
)
def test_what_lance_does_not_read_is_said(add, says, lance, pair, noise):
    with pytest.raises(ValueError, match=f"Lance does not read .*{says}"):
        ksample(lance[0], noise, (add(pair[0], lance[0], lance[2]), pair[1]), 1)


def test_inpainting_conditioning_works_with_its_mask(lance, pair):
    mask = torch.zeros(1, 64, 96)
    mask[:, :, 48:] = 1
    picture = torch.rand(1, 64, 96, 3)
    positive, negative, latent = nodes.InpaintModelConditioning().encode(*pair, picture, lance[2], mask)
    kept = lance[0].get_model_object("latent_format").process_in(latent["samples"])
    start, sigmas = torch.randn_like(kept), schedule(2, 3.5)
    out = sample(lance[0], positive, negative, start, sigmas, latent=kept, mask=latent["noise_mask"])
    assert torch.allclose(out[..., :2], kept[..., :2], atol=1e-4)
    without = nodes.InpaintModelConditioning().encode(*pair, picture, lance[2], mask, noise_mask=False)
    with pytest.raises(ValueError, match="Lance does not read a picture beside the noise"):
        ksample(lance[0], start, without[:2], 1)
