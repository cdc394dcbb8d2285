"""Context windows over clips whose conditioning has frames: edits, given frames and references."""

from __future__ import annotations

import comfy.context_windows
import comfy.model_management
import comfy.patcher_extension
import pytest
import torch
from comfy_extras.nodes_context_windows import (
    ContextWindowsManualNode,
    LTXVContextWindowsNode,
    WanContextWindowsManualNode,
)
from comfyui_lance.lance_model import language, media
from comfyui_lance.lance_model.context import ContextStore
from comfyui_lance.lance_model.diffusion import Lance
from comfyui_lance.lance_model.resolution import PRESETS
from comfyui_lance.lance_model.sequence import Label
from comfyui_lance.lance_model.transformer import LanceTransformer
from comfyui_lance.nodes.guidance import LanceGuidance
from comfyui_lance.nodes.windows import LanceContextWindows
from support.sampling import PROMPT, ksample, relative, sample, schedule

LATENTS = 7  # of 25 frames
STATIC, MOVING = "standard_static", "looped_uniform"


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NOISE, SOURCE = random(1, 48, LATENTS, 4, 6), random(1, 48, LATENTS, 4, 6, seed=2)
FRAMES = random(1 + 4 * (LATENTS - 1), 64, 96, 3, seed=3).sigmoid()


def encoded(clip, frames: torch.Tensor, latent: torch.Tensor, label=Label.SOURCE):
    seen = media.preprocess(frames, PRESETS["image 256"])
    return language.encode_pair(
        clip, PROMPT, target="video", media=[media.Medium(seen.patches, seen.grid, latent, label)]
    )


@pytest.fixture()
def video_edit(lance):
    return encoded(lance[1], FRAMES, SOURCE)


def windows(model, length=3, overlap=1, schedule=STATIC, fuse="pyramid", dim=2, **settings):
    settings = {"context_stride": 1, "closed_loop": False, "freenoise": False} | settings
    return ContextWindowsManualNode.execute(model, length, overlap, schedule, fuse_method=fuse, dim=dim, **settings)[0]


@pytest.fixture()
def seen(monkeypatch) -> list:
    """The sequences of each pass."""
    passes, original = [], Lance._apply_model

    def noting(self, *args, **kwargs):
        passes.append(kwargs["sequences"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Lance, "_apply_model", noting)
    return passes


@pytest.fixture()
def contexts(monkeypatch) -> list:
    """One entry for each context computed."""
    computed, original = [], Lance._context

    def counting(self, *args, **kwargs):
        computed.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Lance, "_context", counting)
    return computed


def source(sequence) -> torch.Tensor:
    return next(segment.latent for segment in sequence.segments if segment.label == Label.SOURCE)


def vision(sequence) -> torch.Tensor:
    """Embeddings of the vision block [1, pairs of frames, tokens of each, hidden]."""
    start = len(sequence.segments[0])
    grid = sequence.segments[1].grid
    inner = sequence.embeddings[:, start + 1 : start + 1 + grid[0] * grid[1] * grid[2]]
    return inner.unflatten(1, (grid[0], -1))


def test_an_edit_in_one_window_is_the_plain_edit(lance, video_edit, monkeypatch):
    handler = comfy.context_windows.IndexListContextHandler
    plain = ksample(lance[0], NOISE, video_edit, 3)
    monkeypatch.setattr(handler, "should_use_context", lambda *args: True)
    one = ksample(windows(lance[0], LATENTS, fuse="flat"), NOISE, video_edit, 3)
    assert torch.equal(one, plain)


@pytest.mark.parametrize(("causal", "starts"), [(False, [0, 2, 4]), (True, [0, 1, 3])])
def test_a_window_sees_what_an_edit_of_the_clip_cut_out_sees(lance, video_edit, seen, causal, starts):
    ksample(windows(lance[0], causal_window_fix=causal), NOISE, video_edit, 1, cfg=1.0)
    assert len(seen) == len(starts)
    for i, ((sequence,), start) in enumerate(zip(seen, starts)):
        end = 2 * i + 2
        assert torch.equal(source(sequence), SOURCE[:, :, start : end + 1])
        alone = encoded(lance[1], FRAMES[4 * start : 4 * end + 1], source(sequence))[0][0][1]["lance_sequence"]
        assert [s.grid for s in sequence.segments] == [s.grid for s in alone.segments]
        assert sequence.token_ids()[:-2] == alone.token_ids()[:-2]
        # The last pair's second frame is the next one, where the clip alone repeats its last.
        last = None if end == LATENTS - 1 else -1
        assert torch.allclose(vision(sequence)[:, :last], vision(alone)[:, :last], atol=1e-5)
        text = len(sequence.embeddings[0]) - sum(s.embedded for s in sequence.segments[:3])
        assert text > 0 and torch.equal(sequence.embeddings[:, -text:], alone.embeddings[:, -text:])


def test_windows_that_go_round_and_skip_frames_are_cut_as_comfyui_cuts_latents(lance, video_edit, seen):
    model = windows(lance[0], schedule=MOVING, context_stride=2, closed_loop=True, causal_window_fix=False)
    cuts, original = [], comfy.context_windows.IndexListContextWindow.get_tensor

    def noting(self, full, *args, **kwargs):
        if full.shape == NOISE.shape:
            cuts.append(self.index_list)
        return original(self, full, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.context_windows.IndexListContextWindow, "get_tensor", noting)
        ksample(model, NOISE, video_edit, 1, cfg=1.0)
    assert any(later < earlier for its in cuts for earlier, later in zip(its, its[1:]))
    for its, (sequence,) in zip(cuts, seen, strict=True):
        assert torch.equal(source(sequence), SOURCE[:, :, its])


def test_windows_compute_their_contexts_once_a_run(lance, video_edit, contexts):
    for steps in (2, 6):
        contexts.clear()
        ksample(windows(lance[0]), NOISE, video_edit, steps)
        assert len(contexts) == 2 * 3


def test_contexts_that_find_no_room_are_computed_again_each_step(lance, video_edit, contexts, monkeypatch):
    kept = ksample(windows(lance[0]), NOISE, video_edit, 3, cfg=1.0)
    free, plenty = comfy.model_management.get_free_memory, len(contexts)
    monkeypatch.setattr(
        comfy.model_management, "get_free_memory", lambda device=None, **kwargs: 0 if device else free()
    )
    assert torch.equal(ksample(windows(lance[0]), NOISE, video_edit, 3, cfg=1.0), kept)
    assert (plenty, len(contexts) - plenty) == (3, 9)


def test_contexts_of_windows_that_moved_on_are_dropped(lance, video_edit, contexts, monkeypatch):
    held, original = [], ContextStore.context

    def noting(self, *args):
        pieces = original(self, *args)
        held.append(len(self._contexts))
        return pieces

    monkeypatch.setattr(ContextStore, "context", noting)
    ksample(windows(lance[0], schedule=MOVING), NOISE, video_edit, 8, cfg=1.0)
    assert max(held) <= 2 * 3 < LATENTS < len(contexts)  # those of two steps, and one starts at each frame


def test_context_windows_work_on_a_clip_from_text(lance, contexts):
    pair = language.encode_pair(lance[1], PROMPT, target="video")
    out = ksample(windows(lance[0]), NOISE, pair, 4)
    assert out.isfinite().all() and relative(out, ksample(lance[0], NOISE, pair, 4)) > 1e-3
    assert len(contexts) == 2 * 2  # the prompt's, once a run


def test_references_are_seen_whole_in_every_window(lance, seen):
    pair = encoded(lance[1], FRAMES[:1], SOURCE[:, :, :1], Label.REFERENCE)
    ksample(windows(lance[0]), NOISE, pair, 1, cfg=1.0)
    assert len(seen) == 3 and all(sequence is pair[0][0][1]["lance_sequence"] for (sequence,) in seen)


@pytest.mark.parametrize("kind", ["text", "edit"])
def test_given_frames_hold_in_every_window_that_contains_them(lance, video_edit, kind, monkeypatch):
    pair = video_edit if kind == "edit" else language.encode_pair(lance[1], PROMPT, target="video")
    given, mask = [0, 4], torch.ones(1, 1, LATENTS, 4, 6)
    mask[:, :, given] = 0
    shown, original = [], LanceTransformer.forward

    def noting(self, x, timesteps, *args, **kwargs):
        shown.append((x, timesteps.unflatten(1, x.shape[2:])))
        return original(self, x, timesteps, *args, **kwargs)

    monkeypatch.setattr(LanceTransformer, "forward", noting)
    model = windows(lance[0], causal_window_fix=False)
    out = sample(model, *pair, NOISE, schedule(2, 3.5), cfg=1.0, latent=SOURCE, mask=mask)
    assert torch.allclose(out[:, :, given], SOURCE[:, :, given], atol=1e-5)
    assert len(shown) == 2 * 3
    for i, (x, tau) in enumerate(shown):
        for place in range(3):
            frame = 2 * (i % 3) + place
            clean = frame in given
            assert bool((tau[:, place] == 0).all()) == clean
            assert torch.allclose(x[:, :, place], SOURCE[:, :, frame], atol=1e-5) == clean


def test_frames_retained_in_every_window_keep_source_and_latent_together(lance, video_edit, seen):
    model = LTXVContextWindowsNode.execute(lance[0], 17, 8, STATIC, "pyramid", False, retain_first_frame=True)[0]
    ksample(model, NOISE, video_edit, 1, cfg=1.0)
    assert [source(sequence)[:, :, 0].equal(SOURCE[:, :, 0]) for (sequence,) in seen] == [True] * 3


@pytest.mark.parametrize("kind", ["mask", "edit"])
def test_frames_retained_beside_another_times_latent_are_said(lance, video_edit, kind):
    model = WanContextWindowsManualNode.execute(lance[0], 9, 4, STATIC, 1, False, "pyramid", False, True)[0]
    pair = video_edit if kind == "edit" else language.encode_pair(lance[1], PROMPT, target="video")
    mask = torch.ones(1, 1, LATENTS, 4, 6) if kind == "mask" else None
    with pytest.raises(ValueError, match="Retain the same frames"):
        sample(model, *pair, NOISE, schedule(1, 3.5), latent=SOURCE, mask=mask)


def test_windows_of_an_edit_along_its_height_are_said(lance, video_edit):
    with pytest.raises(ValueError, match="go along its frames. Set dim to 2"):
        ksample(windows(lance[0], dim=3), NOISE, video_edit, 1)


def test_a_batch_of_clips_in_windows_is_said(lance):
    pair = language.encode_pair(lance[1], PROMPT, target="video")
    ksample(windows(lance[0]), NOISE[:, :, :3].repeat(2, 1, 1, 1, 1), pair, 1)  # short enough to need none
    with pytest.raises(ValueError, match="one clip at a time. Set batch_size to 1"):
        ksample(windows(lance[0]), NOISE.repeat(2, 1, 1, 1, 1), pair, 1)


def test_an_edit_of_another_length_than_its_source_is_said(lance, video_edit):
    with pytest.raises(ValueError, match="as large as its source"):
        ksample(windows(lance[0]), NOISE[:, :, :5], video_edit, 1)


def test_memory_is_that_of_a_window(lance, video_edit):
    model = lance[0].model
    shapes = {"sequences": [model.extra_conds_shapes(**video_edit[0][0][1])["sequences"]]}
    plain, part = (model.memory_required([1, 48, frames, 4, 6], shapes) for frames in (LATENTS, 3))
    assert 2 * part < plain


def test_guidance_by_pictures_goes_window_by_window(lance, video_edit, seen):
    model = LanceGuidance.execute(windows(lance[0]), 0.0, 1.0, "none", image_guidance=2.0)[0]
    out = ksample(model, NOISE, video_edit, 1)
    assert out.isfinite().all()
    sources = [
        [segment.grid[0] for s in passes for segment in s.segments if segment.label == Label.SOURCE] for passes in seen
    ]
    assert {frames for its in sources for frames in its} == {3, 4}
    assert sum(not its for its in sources) == 3  # the branch without the source


def test_automatic_windows_are_as_long_as_the_models_clips(lance, nano):
    handlers = [
        LanceContextWindows.execute(model, {"window": "automatic"})[0].model_options["context_handler"]
        for model in (lance[0], nano[0])
    ]
    assert [(handler.context_length, handler.context_overlap, handler.dim) for handler in handlers] == [
        (13, 3, 2),  # latent frames of 49 and of 12
        (3, 1, 2),
    ]


def test_windows_of_ones_own_are_those_of_core(lance, video_edit):
    ours = LanceContextWindows.execute(lance[0], {"window": "custom", "frames": 9, "overlap": 4})[0]
    assert torch.equal(ksample(ours, NOISE, video_edit, 2), ksample(windows(lance[0]), NOISE, video_edit, 2))


def test_windows_that_never_move_on_are_said(lance):
    with pytest.raises(ValueError, match="Windows of 9 frames cannot overlap by 12. Set overlap to 8 or less"):
        LanceContextWindows.execute(lance[0], {"window": "custom", "frames": 9, "overlap": 12})
