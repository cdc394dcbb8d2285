"""Areas and masks of prompts, and denoise masks that change from step to step."""

from types import SimpleNamespace

import comfy.patcher_extension
import comfy.samplers
import numpy as np
import pytest
import torch
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_video_model import ConditioningSetAreaPercentageVideo
from comfyui_lance.lance_model import language, regions
from comfyui_lance.nodes.latent import EmptyLanceLatent
from comfyui_lance.training import world
from support.sampling import Probe, edit, ksample, relative, sample, schedule

import nodes


def noise(frames=1, height=8, width=12, batch=1) -> torch.Tensor:
    return torch.randn(batch, 48, frames, height, width, generator=torch.Generator().manual_seed(1))


class Grids:
    """The target's grid in each pass."""

    def __init__(self, model):
        self.seen, self.model = [], model.clone()
        self.model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, self._note)

    def _note(self, executor, x, *args, **kwargs):
        self.seen.append(tuple(x.shape[2:]))
        return executor(x, *args, **kwargs)


def area(conditioning, width, height, x, y):
    return nodes.ConditioningSetArea().append(conditioning, width, height, x, y, 1.0)[0]


def share(conditioning, width, height, x, y):
    return nodes.ConditioningSetAreaPercentage().append(conditioning, width, height, x, y, 1.0)[0]


def masked(conditioning, mask, where="default"):
    return nodes.ConditioningSetMask().append(conditioning, mask, where, 1.0)[0]


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(
    "limited",
    [
        lambda c: area(c, 96, 128, 96, 0),
        lambda c: share(c, 0.5, 1.0, 0.5, 0.0),
        lambda c: masked(c, torch.ones(1, 128, 192) * (torch.arange(192) >= 96), "mask bounds"),
    ],
)
def test_the_right_half_is_the_right_half(frames, limited, lance, pair):
    start = noise(frames)
    out = ksample(lance[0], start, (limited(pair[0]), pair[1]), 3, cfg=1.0)
    assert torch.allclose(out[..., 6:], ksample(lance[0], start[..., 6:], pair, 3, cfg=1.0), atol=1e-4)
    assert out[..., :6].abs().max() < 1e-4, "what no prompt covers is predicted as nothing"
    grids = Grids(lance[0])
    assert ksample(grids.model, start, (limited(pair[0]), pair[1]), 1).isfinite().all()
    assert set(grids.seen) == {(frames, 8, 6), (frames, 8, 12)}, "the negative prompt is everywhere"


def test_areas_count_in_pixels_of_the_picture():
    grid = torch.Size([3, 8, 12])
    assert regions.area_on_grid((8, 12, 8, 0), grid) == (3, 4, 6, 0, 4, 0)
    assert regions.area_on_grid((4, 9, 4, 9), grid) == (3, 2, 5, 0, 2, 4)  # half a cell goes to one of two neighbours
    assert regions.area_on_grid((100, 100, 14, 22), grid) == (3, 1, 1, 0, 7, 11)
    assert regions.area_on_grid(("percentage", 0.0, 0.5, 0.99, 0.5), grid) == (3, 1, 6, 0, 7, 6)
    assert regions.area_on_grid(("percentage", 0.34, 1.0, 1.0, 0.66, 0.0, 0.0), grid) == (1, 8, 12, 2, 0, 0)


def test_neighbouring_areas_neither_overlap_nor_leave_a_gap():
    grid = torch.Size([1, 9, 13])
    for edge in (24, 56, 64, 120):
        left = regions.area_on_grid((18, edge // 8, 0, 0), grid)
        right = regions.area_on_grid((18, 26 - edge // 8, 0, edge // 8), grid)
        assert (left[2], left[2] + right[2]) == (right[5], 13)


@pytest.mark.parametrize("limited", [lambda c: area(c, 64, 64, 192, 0), lambda c: share(c, 0.5, 0.5, 0.0, 1.0)])
def test_an_area_outside_of_the_picture_is_refused(limited, lance, pair):
    with pytest.raises(ValueError, match="begins outside of the picture: at (x 192 of 192|y 128 of 128). Move it"):
        ksample(lance[0], noise(), (limited(pair[0]), pair[1]), 1)


def test_a_stretch_of_a_clip_has_a_prompt_of_its_own(lance, pair):
    (limited,) = ConditioningSetAreaPercentageVideo().append(pair[0], 1.0, 1.0, 0.34, 0.0, 0.0, 0.66, 1.0)
    grids = Grids(lance[0])
    assert ksample(grids.model, noise(3), ([*pair[0], *limited], pair[1]), 2).isfinite().all()
    assert {(1, 8, 12), (3, 8, 12)} == set(grids.seen)


@pytest.mark.parametrize(("frames", "batch", "masks"), [(1, 1, 1), (1, 3, 3), (3, 1, 1), (3, 1, 3), (3, 2, 9)])
def test_masks_on_prompts_fit_pictures_and_clips(frames, batch, masks, lance, pair):
    other = language.encode_pair(lance[1], "A blue bowl.")[0]
    mask = torch.zeros(masks, 128, 192)
    mask[-1, :, 96:] = 1
    both = [*masked(pair[0], 1 - mask), *masked(other, mask)]
    out, alone = (ksample(lance[0], noise(frames, batch=batch), (c, pair[1]), 1, cfg=1.0) for c in (both, pair[0]))
    mine = torch.ones(batch, frames, 8, 12, dtype=torch.bool)
    # Of several masks the last alone is painted: that of the last picture or of the last frames.
    mine[-1 if frames == 1 else slice(None), -1 if masks > 1 else slice(None), :, 6:] = False
    assert torch.equal((out - alone).abs().amax(dim=1) < 1e-4, mine)


@pytest.mark.parametrize(("frames", "masks", "of"), [(1, 2, "1 pictures"), (3, 5, "9 frames")])
def test_another_number_of_masks_is_refused(frames, masks, of, lance, pair):
    positive = masked(pair[0], torch.ones(masks, 128, 192))
    with pytest.raises(ValueError, match=f"{masks} masks for {of}"):
        ksample(lance[0], noise(frames), (positive, pair[1]), 1)


def test_bounds_of_an_empty_mask_are_no_error(lance, pair):
    positive = [*pair[0], *masked(pair[0], torch.zeros(1, 128, 192), "mask bounds")]
    assert ksample(lance[0], noise(), (positive, pair[1]), 1).isfinite().all()


def test_areas_on_edits_are_refused_and_masks_work(lance):
    pair = edit(lance[1])
    with pytest.raises(ValueError, match="areas do not work on edits, masks do"):
        ksample(lance[0], noise(1, 4, 6), (share(pair[0], 0.5, 1.0, 0.0, 0.0), pair[1]), 1)
    mask = torch.ones(1, 64, 96)
    assert ksample(lance[0], noise(1, 4, 6), (masked(pair[0], mask), pair[1]), 1).isfinite().all()


def made(nano, positive, negative, width, seed) -> np.ndarray:
    latent = EmptyLanceLatent.execute({"size": "custom", "width": width, "height": 64}, 1, 1).result[0]
    (samples,) = nodes.common_ksampler(nano[0], seed, 30, 4.0, "euler", "simple", positive, negative, latent)
    (picture,) = nodes.VAEDecode().decode(nano[2], samples)[0]
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def test_two_halves_show_what_their_prompts_ask_for(nano):
    names = "red circle", "blue square"
    prompts = [f"a {name} in the middle on a gray background" for name in names]
    left, right = (language.encode_pair(nano[1], prompt) for prompt in prompts)
    positive = [*area(left[0], 64, 64, 0, 0), *area(right[0], 64, 64, 64, 0)]
    right_ones = 0
    for seed in range(5):
        picture = made(nano, positive, left[1], 128, seed)
        picture[:, 56:72] = picture[0, 0]  # areas that do not overlap leave a seam
        seen = [[thing.name for thing in world.detect(half)[1]] for half in (picture[:, :64], picture[:, 64:])]
        right_ones += seen == [[name] for name in names]
    assert right_ones >= 4


# Denoise masks that change from step to step


def differential(model, strength=1.0):
    return DifferentialDiffusion.execute(model, strength).result[0]


@pytest.mark.parametrize("value", [0.3, 0.7])
def test_a_uniform_mask_is_image_to_image_from_the_step_where_it_opens(value, lance, pair):
    sigmas, start, latent = schedule(10, 3.5), noise(), noise().flip(-1)
    mask = torch.full((1, 1, 1, 8, 12), value)
    out = sample(differential(lance[0]), *pair, start, sigmas, latent=latent, mask=mask)
    least = float(lance[0].get_model_object("model_sampling").sigma_min)
    opens = next(i for i, sigma in enumerate(sigmas) if value >= (sigma - least) / (1 - least))
    plain = sample(lance[0], *pair, start, sigmas[opens:], latent=latent)
    assert relative(out, plain) < 1e-4


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_the_steps_mask_is_in_the_noise_levels_and_the_velocity(strength, lance, pair):
    mask = torch.linspace(0, 1, 12).expand(1, 1, 1, 8, 12)
    seen, sigmas = [], schedule(6, 3.5)
    model = differential(lance[0], strength)

    def note(executor, x, timesteps, transformer_options, *args, **kwargs):
        velocity = executor(x, timesteps, transformer_options, *args, **kwargs)
        seen.append((float(transformer_options["sigmas"][0]), timesteps[0].view(8, 12)[0], velocity[0, :, 0, 0]))
        return velocity

    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, note)
    sample(model, *pair, noise(), sigmas, latent=noise().flip(-1), mask=mask)
    guider = SimpleNamespace(inner_model=lance[0].model)
    assert len(seen) == 6
    for sigma, tau, velocity in seen:
        extra = {"model": guider, "sigmas": sigmas}
        step = DifferentialDiffusion.forward(torch.tensor([sigma]), mask, extra, strength)[0, 0, 0, 0]
        assert torch.allclose(tau, sigma * step, atol=1e-5)
        assert torch.equal(velocity.abs().amax(dim=0) > 0, step > 0)


# Step caches


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode])
def test_step_caches_skip_where_a_mask_misses_every_eighth_cell(node, lance):
    pair = edit(lance[1])
    mask = torch.zeros(1, 1, 1, 4, 6)
    mask[..., 2:, 2:] = 1
    cached = node.execute(lance[0], 0.5, 0.15, 0.95, False).result[0]
    probe = Probe()
    computed = []
    hook = lance[0].model.diffusion_model.llm2vae.register_forward_hook(lambda *_: computed.append(1))
    latent = noise(1, 4, 6).flip(-1)
    out = sample(probe.attach(cached), *pair, noise(1, 4, 6), schedule(30, 3.5), latent=latent, mask=mask)
    hook.remove()
    assert len(computed) < 20
    assert torch.allclose(out[..., :2], latent[..., :2], atol=1e-5)
    assert cached.model_options["transformer_options"]["easycache"].subsample_factor == 8
