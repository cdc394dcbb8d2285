"""Edits that stay in place: over their source, at its own size, and nothing else touched."""

from __future__ import annotations

import re

import comfy.samplers
import pytest
import torch
from comfy_api.latest import InputImpl
from comfy_extras.nodes_custom_sampler import BasicGuider, RandomNoise, SamplerCustomAdvanced
from comfyui_lance.dev.host.workflows import INPUTS
from comfyui_lance.lance_model import media, placement
from comfyui_lance.lance_model.placement import KEY, Placement
from comfyui_lance.nodes.edit import LanceEncodeEdit, LanceEncodeVideoEdit
from comfyui_lance.nodes.paste import LancePasteEdit
from comfyui_lance.nodes.resolution import DEMONSTRATION, KEEP, RESOLUTIONS
from support.pictures import clip_of, picture

import nodes

SMALL = "image 256"


def place(image: torch.Tensor, resolution: str = SMALL, mask: torch.Tensor | None = None) -> Placement:
    return Placement(lambda: image, RESOLUTIONS[resolution].fit(image.shape[2], image.shape[1]), mask)


def outside(placed: Placement, image: torch.Tensor) -> torch.Tensor:
    """Where the picture is none of the edit's [1, h, w]."""
    left, top, right, bottom = placed.fit.box
    kept = torch.ones(image.shape[:3], dtype=torch.bool)
    kept[:, top:bottom, left:right] = False
    return kept


def waves(width: int, height: int) -> torch.Tensor:
    """A picture of slow waves, which loses little when it is scaled."""
    x, y = torch.linspace(0, 6, width), torch.linspace(0, 4, height)[:, None]
    return torch.stack([(x + y).sin(), (x - y).cos(), (x * y / 3).sin()], dim=-1)[None] / 2 + 0.5


def weights(placed: Placement, width: int, height: int, feather: float) -> torch.Tensor:
    """How much of the edit is seen: white over black."""
    edited = torch.ones(1, placed.fit.size[1], placed.fit.size[0], 3)
    return placement.paste(edited, placed, feather)[0, ..., 0]


@pytest.mark.parametrize("resolution", ["image 256", "video 192p", DEMONSTRATION, KEEP])
@pytest.mark.parametrize("width, height", [(300, 200), (203, 311), (256, 256), (500, 90)])
def test_what_the_model_saw_goes_back_to_where_it_was(width, height, resolution):
    image = waves(width, height)
    placed = place(image, resolution)
    seen = placed.fit.for_vae(media.to_pictures(image))
    result = placement.paste(seen, placed, 0)
    kept = outside(placed, image)
    assert torch.equal(result[kept], image[kept])
    apart = (result - image).abs()
    smaller = max(width / seen.shape[2], height / seen.shape[1])
    assert apart.mean() < 0.006 * max(1, smaller), "not shifted by a pixel of the edit"
    if resolution == KEEP:
        assert apart.max() <= 0.5 / 255 + 1e-6 and torch.equal(result[~kept].view_as(seen), seen)


@pytest.mark.parametrize("scale", [1, 3])
def test_inside_it_is_the_edit_scaled(scale):
    image = picture(300, 200)
    placed = place(image)
    left, top, right, bottom = placed.fit.box
    edited = waves(placed.fit.size[0] * scale, placed.fit.size[1] * scale)
    result = placement.paste(edited, placed, 0)
    assert result.shape == image.shape
    assert (result[:, top:bottom, left:right] - waves(right - left, bottom - top)).abs().max() < 0.03


def test_the_seam_is_soft_inwards_and_only_where_something_was_cut():
    placed = place(torch.zeros(1, 100, 400, 3))
    left, top, right, bottom = placed.fit.box
    assert 0 < left < right < 400 and (top, bottom) == (0, 100), "the sides are cut"
    seen = weights(placed, 400, 100, feather=9)
    across = seen[50]
    assert across[:left].max() == across[right:].max() == 0 and across[left] > 0
    assert torch.allclose(across[left : left + 10], torch.arange(1, 11) / 10) and across[left + 10] == 1
    assert across.diff().abs().max() <= 0.1 + 1e-6
    assert torch.allclose(seen, across.expand_as(seen)), "the picture's own edges are no seams"
    assert weights(placed, 400, 100, feather=0)[50, left : left + 2].tolist() == [1, 1]


def test_only_masked_places_come_from_the_edit():
    image, edited = picture(160, 160), picture(256, 256, seed=1)
    mask = torch.zeros(1, 160, 160)
    mask[:, 40:120, 40:120] = 1
    mask[:, 80, 30:40] = 0.5  # a soft edge
    result = placement.paste(edited, place(image, mask=mask), 5)
    assert torch.equal(result[mask == 0], image[mask == 0])
    assert ((result != image).any(dim=-1) == (mask > 0)).float().mean() > 0.99
    whole = placement.paste(edited, place(image), 5)
    assert torch.equal(result[:, 60:100, 60:100], whole[:, 60:100, 60:100])
    seen = weights(place(torch.zeros_like(image), mask=mask), 160, 160, 5)
    assert seen[80, 30:40].max() <= 0.5 and seen[20:140, 60].diff().abs().max() <= 1 / 9 + 1e-6


def run_edit(lance, image: torch.Tensor, **kwargs) -> tuple:
    arguments = {"prompt": "Make the sky green.", "resolution": SMALL, **kwargs}
    return LanceEncodeEdit.execute(lance[1], lance[2], image, **arguments).result


def test_the_samplers_pass_the_place_on(lance):
    (positive,), (negative,), (latent,) = run_edit(lance, picture(120, 80))
    (sampled,) = nodes.common_ksampler(lance[0], 1, 1, 1.0, "euler", "simple", positive, negative, latent)
    guider, noise = BasicGuider.execute(lance[0], positive).result[0], RandomNoise.execute(1).result[0]
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.0])
    both = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).result
    (again,) = nodes.LatentUpscaleBy().upscale(sampled, "bilinear", 2.0)
    assert all(out[KEY] is latent[KEY] for out in (sampled, *both, again))


def test_each_edit_of_a_batch_goes_over_its_own_picture_with_its_own_mask(lance):
    images, mask = picture(120, 80, n=2), torch.zeros(2, 80, 120)
    mask[0, :, :60], mask[1, :, 60:] = 1, 1
    *_, latents = run_edit(lance, images, mask=mask)
    for image, own_mask, latent in zip(images, mask, latents, strict=True):
        width, height = latent[KEY].fit.size
        edited = picture(width, height, n=3)  # three samples of one edit
        result = LancePasteEdit.execute(edited, latent, 2.0).result[0]
        assert result.shape == (3, 80, 120, 3)
        assert all(torch.equal(frame[own_mask == 0], image[own_mask == 0]) for frame in result)
        assert not torch.equal(result[0], result[1]) and not torch.equal(result[0], image)


def test_turns_one_after_another_go_over_the_first_source(lance):
    image = picture(300, 200)
    *_, (first,) = run_edit(lance, image)
    left, top, right, bottom = first[KEY].fit.box
    turn = picture(*first[KEY].fit.size, seed=2)
    *_, (second,) = run_edit(lance, turn)
    assert second[KEY].fit.size == first[KEY].fit.size, "nothing more is cut"
    result = LancePasteEdit.execute(turn, first, 0.0).result[0]
    over = LancePasteEdit.execute(turn, run_edit(lance, result)[2][0], 0.0).result[0]
    kept = outside(first[KEY], image)
    assert torch.equal(result[kept], image[kept]) and torch.equal(over, result)


@pytest.mark.parametrize("kind", ["file", "frames"])
def test_edited_frames_go_over_those_of_their_times(kind, lance):
    video = InputImpl.VideoFromFile(str(INPUTS / "lance_moving.mp4")) if kind == "file" else clip_of(17, fps=24)
    source = video.get_components()
    *_, latent, _ = LanceEncodeVideoEdit.execute(
        lance[1], lance[2], video, "Make it night.", "video 192p", 8.0, 6.0, mask=torch.ones(1, 64, 64).triu(1)
    ).result
    count = 1 + 4 * (latent["samples"].shape[2] - 1)
    chosen = source.images[media.frame_indices(len(source.images), float(source.frame_rate), 8.0)]
    assert 1 < count == len(chosen) < len(source.images)
    edited = picture(*latent[KEY].fit.size, n=2 * count)  # two samples
    result = LancePasteEdit.execute(edited, latent, 2.0).result[0]
    kept = torch.ones(64, 64).triu(1) == 0
    assert result.shape == (2 * count, 64, 64, 3)
    kept_of = [media.to_bytes(frames[:, kept]) for frames in (result, chosen.repeat(2, 1, 1, 1))]
    assert torch.equal(*kept_of), "frames of files are taken in 8 bits"
    assert len(result.flatten(1).unique(dim=0)) == 2 * count


def test_each_frame_has_its_own_mask(lance):
    mask = torch.zeros(5, 64, 64)
    for i, own in enumerate(mask):
        own[:, 10 * i : 10 * i + 12] = 1
    video = clip_of(5)
    *_, latent, _ = LanceEncodeVideoEdit.execute(lance[1], lance[2], video, "Night.", KEEP, 12.0, 6.0, mask=mask).result
    result = LancePasteEdit.execute(torch.zeros(5, 64, 64, 3), latent, 0.0).result[0]
    assert torch.equal(result.amax(dim=-1) == 0, mask == 1)


def test_an_edit_over_transparency_is_opaque_and_has_no_dark_fringe():
    image = torch.zeros(1, 100, 400, 4)  # black under full transparency
    image[:, :, 380:] = torch.tensor([0.2, 0.4, 0.6, 0.5])
    placed = place(image)
    kept = outside(placed, image)
    result = placement.paste(torch.ones(1, placed.fit.size[1], placed.fit.size[0], 3), placed, 5)
    assert torch.equal(result[kept], image[kept]) and result[0, 50, 200].tolist() == [1, 1, 1, 1]
    over_nothing = result[0, 50, placed.fit.box[0] : 200]
    assert over_nothing[0, 3] < 0.2 and torch.allclose(over_nothing[:, :3], torch.ones(3))


def test_transparent_parts_of_an_edit_show_the_source():
    image, edited = picture(256, 256), picture(256, 256, channels=4, seed=1)
    edited[..., 3] = 0
    edited[:, :100, :, 3] = 1
    result = placement.paste(edited, place(image), 2)
    assert torch.equal(result[:, 100:], image[:, 100:]) and torch.equal(result[:, :100], edited[:, :100, :, :3])


@pytest.mark.parametrize("channels, coloured", [(1, 3), (2, 4)])
def test_grey_sources_become_coloured(channels, coloured):
    image = picture(100, 100, channels)
    result = placement.paste(torch.zeros(1, 64, 64, 3), place(image, mask=torch.eye(100)[None]), 0)
    assert result.shape == (1, 100, 100, coloured)
    assert torch.equal(result[0, 0, 1:, :3], image[0, 0, 1:, :1].expand(-1, 3)) and result[0, 0, 0, :3].max() == 0


def test_a_mask_that_is_black_throughout_leaves_the_source():
    image = picture(100, 100)
    assert torch.equal(
        placement.paste(picture(256, 256, seed=1), place(image, mask=torch.zeros(1, 100, 100)), 2), image
    )


@pytest.mark.parametrize(
    "edited, words",
    [
        (torch.zeros(0, 256, 256, 3), "edited holds no picture"),
        (picture(96, 64), "edited picture is 96x64, but what was cut out of the source has the shape of 256x256"),
    ],
)
def test_another_picture_than_the_edit_is_refused(edited, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        placement.paste(edited, place(picture(100, 100)), 2)


def test_another_number_of_frames_is_refused():
    with pytest.raises(ValueError, match="There are 9 edited frames, but the source has 5"):
        placement.paste(picture(256, 256, n=9), place(picture(100, 100, n=5)), 2)


def test_a_latent_without_a_place_is_refused():
    with pytest.raises(ValueError, match="does not know what it was made of. Connect that of Lance Encode Image Edit"):
        LancePasteEdit.execute(picture(), {"samples": torch.zeros(1, 48, 1, 4, 4)}, 2.0)
