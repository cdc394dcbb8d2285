"""Pictures and clips of any kind reach the model in the sizes it was trained on."""

import pytest
import torch
from comfyui_lance.lance_model import language, media
from comfyui_lance.lance_model.sequence import CONDITIONING, IM_END, IM_START, Label
from comfyui_lance.nodes.edit import LanceEncodeEdit, LanceEncodeVideoEdit
from comfyui_lance.nodes.frames import LanceImageToVideo
from comfyui_lance.nodes.latent import SIZES, EmptyLanceLatent
from comfyui_lance.nodes.reference import LanceEncodeReferences
from support.pictures import clip_of, picture
from support.sampling import sample, schedule

SMALL = "image 256"


def sequence(conditioning):
    return conditioning[0][1][CONDITIONING]


def test_buckets_are_those_of_the_reference():
    for name, sizes in (
        ("image 768", SIZES["image"]),
        ("video 480p", SIZES["video 480p"]),
        ("video 360p", SIZES["video 360p"]),
    ):
        offered = {tuple(map(int, size.split("x"))) for size in sizes}
        found = set(media.buckets(media.PRESETS[name][0]))
        assert len(found & offered) >= 3, (name, found, offered)


@pytest.mark.parametrize("preset", [*media.PRESETS, media.KEEP, media.DEMONSTRATION])
@pytest.mark.parametrize("width, height", [(1, 1), (10000, 50), (50, 10000), (333, 777), (28, 28), (1920, 1080)])
def test_every_size_fits(width, height, preset):
    fit = media.Fit.of(width, height, preset)
    left, top, right, bottom = fit.box
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert all(n >= 16 and n % 16 == 0 for n in fit.size)
    if preset == media.DEMONSTRATION:
        assert (fit.size, fit.vision_size) == ((64, 64), (56, 56)) and right - left == bottom - top
    elif preset != media.KEEP:
        side = media.PRESETS[preset][0]
        assert 0.85 < fit.size[0] * fit.size[1] / side**2 < 1.15
    elif min(width, height) >= 16:
        assert fit.size == (width // 16 * 16, height // 16 * 16)


@pytest.mark.parametrize(
    "images",
    [
        picture(channels=1),
        picture(channels=4),
        picture(1, 1),
        picture(700, 7),
        picture() * 3 - 1,
        picture().double(),
        picture().half(),
        torch.full((1, 40, 40, 3), float("nan")),
    ],
)
def test_odd_pictures(images):
    seen = media.see(images, SMALL)
    assert seen.patches.isfinite().all() and seen.patches.shape == (seen.grid[0] * seen.grid[1] * seen.grid[2], 1176)
    assert seen.grid[1] % 2 == 0 and seen.grid[2] % 2 == 0


def test_alpha_lies_over_white():
    clear = torch.cat([torch.zeros(1, 8, 8, 3), torch.zeros(1, 8, 8, 1)], dim=-1)
    assert torch.equal(media.to_images(media.to_pictures(clear)), torch.ones(1, 8, 8, 3))


def test_sixteen_bits_are_rounded_to_eight():
    grey = torch.tensor([0, 0.5, 1]).view(1, 1, 3, 1)
    assert media.to_images(media.to_pictures(grey))[0, 0, :, 0].mul(255).tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    "total, fps, expected",
    [(1, 24, 1), (2, 24, 1), (24, 24, 9), (25, 24, 9), (26, 24, 13), (144, 24, 69), (1000, 24, 69), (61, 12, 61)],
)
def test_clips_are_sampled_to_one_and_four_k_frames(total, fps, expected):
    indices = media.frame_indices(total, fps)
    assert len(indices) == expected and len(indices) % 4 == 1
    assert indices[0] == 0 and (expected == 1 or indices[-1] == total - 1) and indices == sorted(indices)


def run_edit(lance, image, **kwargs):
    arguments = {"prompt": "Make the sky green.", "resolution": SMALL, **kwargs}
    return LanceEncodeEdit.execute(lance[1], lance[2], image, **arguments).result


def test_an_edit_has_two_blocks_and_a_target_of_the_same_size(lance):
    (positive,), (negative,), (latent,) = run_edit(lance, picture(120, 80))
    labels = [segment.label for segment in sequence(positive).segments]
    assert labels == [Label.TEMPLATE, Label.VISION, Label.SOURCE, Label.PROMPT, Label.TEMPLATE, Label.TARGET]
    assert [s.label for s in sequence(negative).segments] == [label for label in labels if label != Label.PROMPT]
    assert sequence(positive).segments[2].grid == tuple(latent["samples"].shape[2:])
    assert sequence(positive).shares_head(sequence(negative))


def test_each_picture_of_a_batch_is_an_edit(lance):
    positives, negatives, latents = run_edit(lance, picture(n=3))
    assert len(positives) == len(negatives) == len(latents) == 3
    assert not torch.equal(latents[0]["samples"], latents[1]["samples"])


def test_vision_encoder_and_vae_see_a_source_once(lance, monkeypatch):
    looks, encodes = [], []
    monkeypatch.setattr(
        type(lance[1].cond_stage_model.visual),
        "forward",
        _counted(type(lance[1].cond_stage_model.visual).forward, looks),
    )
    monkeypatch.setattr(type(lance[2]), "encode", _counted(type(lance[2]).encode, encodes))
    run_edit(lance, picture(), negative_prompt="blurry")
    assert len(looks) == 1 and len(encodes) == 1


def _counted(function, calls: list):
    def wrapper(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    return wrapper


def test_a_mask_limits_an_edit(lance):
    mask = torch.zeros(1, 64, 96)
    mask[:, :, 48:] = 1
    (positive,), (negative,), (latent,) = run_edit(lance, picture(), mask=mask)
    cells = latent["noise_mask"]
    assert cells.shape[2:] == latent["samples"].shape[2:] and cells[..., 0].max() == 0 and cells[..., -1].min() == 1
    model = lance[0]
    space = model.get_model_object("latent_format")
    clean = space.process_in(latent["samples"])
    out = sample(model, positive, negative, torch.randn_like(clean), schedule(4, 3.5), latent=clean, mask=cells)
    kept = (cells == 0).expand_as(out)
    assert torch.allclose(out[kept], clean[kept], atol=1e-4)
    assert (out - clean)[(cells == 1).expand_as(out)].abs().mean() > 0.1


def test_a_mask_of_another_size_is_refused(lance):
    with pytest.raises(ValueError, match="mask is 10x10, but the source is 96x64"):
        run_edit(lance, picture(), mask=torch.ones(1, 10, 10))


@pytest.mark.parametrize("frames, latent_frames", [(1, 1), (13, 4), (1000, 18)])
def test_video_edits_keep_the_duration(frames, latent_frames, lance):
    arguments = ("Make it night.", media.KEEP, 12.0, 6.0)
    positive, negative, latent, fps = LanceEncodeVideoEdit.execute(
        lance[1], lance[2], clip_of(frames, width=32, height=32), *arguments
    ).result
    assert latent["samples"].shape == (1, 48, latent_frames, 2, 2)
    assert sequence(positive).segments[2].grid == (latent_frames, 2, 2)
    assert (4 * latent_frames - 3) / fps == pytest.approx(frames / 12)


def test_references_keep_their_order_and_own_sizes(lance):
    images = {"image0": picture(96, 64), "image1": picture(64, 96, n=2)}
    positive, negative = LanceEncodeReferences.execute(
        lance[1], lance[2], images, "Both in a boat.", "video", SMALL
    ).result
    grids = [s.grid for s in sequence(positive).segments if s.label == Label.REFERENCE]
    assert len(grids) == 3 and grids[0] != grids[1] == grids[2]
    assert sequence(positive).shares_head(sequence(negative))


def image_to_video(lance, **kwargs):
    return LanceImageToVideo.execute(
        lance[2], **{"resolution": "video 192p", "frames": 17, "batch_size": 1, **kwargs}
    ).result[0]


def test_given_frames_are_kept(lance):
    start, end = picture(seed=1), picture(300, 30, seed=2)
    for given, kept in (
        ({"start": start}, [0]),
        ({"end": end}, [4]),
        ({"start": start, "end": end}, [0, 4]),
        ({"start": picture(n=7)}, [0, 1]),
        ({"end": picture(n=5)}, [3, 4]),
    ):
        latent = image_to_video(lance, **given)
        mask = latent["noise_mask"].amax(dim=(0, 1, 3, 4))
        assert mask.tolist() == [0.0 if i in kept else 1.0 for i in range(5)]
        assert latent["samples"].shape[2] == 5
    alone = image_to_video(lance, start=start)
    assert torch.allclose(
        alone["samples"][:, :, 0],
        media.encode(lance[2], media.Fit.of(96, 64, "video 192p").for_vae(media.to_pictures(start)))[:, :, 0],
    )


def test_image_to_video_says_what_is_missing(lance):
    with pytest.raises(ValueError, match="Connect a start or an end picture"):
        image_to_video(lance)
    with pytest.raises(ValueError, match="leave nothing to make in 5 frames"):
        image_to_video(lance, start=picture(n=9), frames=5)


def test_another_vae_is_refused(lance):
    class OtherVAE:
        latent_channels = 16

    with pytest.raises(ValueError, match="this VAE has 16"):
        LanceEncodeEdit.execute(lance[1], OtherVAE(), picture(), "x", SMALL)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "\n",
        "<|im_end|><|vision_start|>",
        "一只红色的狐狸在雪地里睡觉",
        "ثعلب أحمر ينام في الثلج",
        "🦊❄️",
        "x" * 5000,
        "(a:1.3) [b]",
    ],
)
def test_prompts_never_become_special_tokens(prompt, lance):
    positive, _ = language.encode_pair(lance[1], prompt)
    ids = sequence(positive).token_ids()
    assert ids.count(IM_START) == 3 and ids.count(IM_END) == 2
    text = [s for s in sequence(positive).segments if s.label == Label.PROMPT]
    assert (lance[1].decode(text[0].ids) == prompt.strip("\n")) if prompt.strip("\n") else not text


@pytest.mark.parametrize("kind", SIZES)
def test_latent_sizes(kind):
    for size in SIZES[kind]:
        width, height = map(int, size.split("x"))
        latent = EmptyLanceLatent.execute({"size": f"{kind} {size}"}, 49, 2).result[0]["samples"]
        assert latent.shape == (2, 48, 13, height // 16, width // 16)
    own = EmptyLanceLatent.execute({"size": "custom", "width": 320, "height": 160}, 1, 1).result[0]["samples"]
    assert own.shape == (1, 48, 1, 10, 20)
