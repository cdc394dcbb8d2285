"""How likely answers are, and pictures and clips ranked by it."""

import random
from dataclasses import replace

import pytest
import torch
from comfyui_lance.lance_model import generation, language, media, resolution
from comfyui_lance.lance_model.transformer import LanceTransformer
from comfyui_lance.nodes.rank import LanceRank, sentence
from comfyui_lance.nodes.resolution import KEEP
from comfyui_lance.training import judge, world
from support.answers import node
from support.pictures import picture
from support.sampling import lora_patches

pytestmark = pytest.mark.usefixtures("kept_memory")

ANSWERS = ["A red circle on a white background.", "A red square.", "No"]
FIT = {"image_resolution": KEEP, "video_resolution": KEEP}


def request(**kwargs) -> language.Request:
    seen = media.preprocess(picture(), resolution.PRESETS["image 256"])
    return language.Request("What is it?", media=(seen,), **kwargs)


def step_by_step(lance, asked, answer: str, monkeypatch) -> torch.Tensor:
    """The log-probabilities that the answer's tokens have when they are chosen, one after another."""
    ids, seen = lance[1].cond_stage_model.tokenizer.ids(answer), []

    def forced(logits, answered, *_):
        seen.append(logits[0].log_softmax(dim=0)[ids[len(answered)]])
        return torch.tensor(ids[len(answered)])

    with monkeypatch.context() as patch:
        patch.setattr(generation, "choose", forced)
        language.answer(lance[1], lance[0], asked, max_length=len(ids))
    return torch.stack(seen)


@pytest.mark.parametrize("mape", [False, True])
def test_log_likelihoods_are_those_of_an_answer_that_is_written(lance, mape, monkeypatch):
    asked = request(mape=mape)
    for answer, found in zip(ANSWERS, language.log_likelihoods(lance[1], lance[0], asked, ANSWERS)):
        torch.testing.assert_close(found, step_by_step(lance, asked, answer, monkeypatch), atol=1e-4, rtol=0)


def test_a_long_answer_passes_the_head_in_parts(lance, monkeypatch):
    answer = "a red circle and a blue star " * 40
    (found,) = language.log_likelihoods(lance[1], lance[0], request(), [answer])
    monkeypatch.setattr("comfyui_lance.lance_model.scoring.HEAD_TOKENS", 10**6)
    (whole,) = language.log_likelihoods(lance[1], lance[0], request(), [answer])
    assert len(found) == len(lance[1].cond_stage_model.tokenizer.ids(answer)) > 200
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=0)


def test_the_question_passes_once_for_all_answers(lance, monkeypatch):
    passed, looked, context, embed = [], [], LanceTransformer.context, language.LanceLanguage.embed_vision

    def counted(self, und, *args, **kwargs):
        passed.append(und.shape[1])
        return context(self, und, *args, **kwargs)

    monkeypatch.setattr(LanceTransformer, "context", counted)
    monkeypatch.setattr(language.LanceLanguage, "embed_vision", lambda *args: looked.append(args) or embed(*args))
    found = language.log_likelihoods(lance[1], lance[0], request(), ANSWERS)
    question = language.prepare(lance[1], request()).question(request()).embeddings.shape[1]
    first, *others = map(len, found)
    assert passed == [question + first, *others]
    assert len(looked) == 2  # for the answers, and for this test's own count


def test_loras_on_the_model_count(lance):
    (plain,) = language.log_likelihoods(lance[1], lance[0], request(), ANSWERS[:1])
    changed = lance[0].clone()
    changed.add_patches(lora_patches(0.5))
    (other,) = language.log_likelihoods(lance[1], changed, request(), ANSWERS[:1])
    assert (other - plain).abs().max() > 1e-3


# ---- The node --------------------------------------------------------------------------------------------------------


def rank(model, images, task: dict, frames: int = 1, **kwargs) -> tuple:
    return node(LanceRank).execute(*model[:2], images, task, frames, **FIT | kwargs).result


def captioned(prompt: str) -> dict:
    return {"task": "caption", "prompt": prompt, "style": "accurate"}


def asked(question: str, answer: str, other: str = "") -> dict:
    return {"task": "question", "question": question, "answer": answer, "other_answer": other}


def pictures(count: int = 4) -> tuple[list[world.Scene], torch.Tensor]:
    rng = random.Random(3)
    scenes = [world.two(rng) for _ in range(count)]
    return scenes, torch.cat([judge.image(scene) for scene in scenes])


def test_the_picture_that_shows_the_prompt_is_first(nano):
    scenes, images = pictures()
    for i, scene in enumerate(scenes):
        ranked, best, scores, index = rank(nano, images, captioned(world.describe(scene)))
        assert index == i and torch.equal(best, images[i : i + 1]) and torch.equal(ranked[:1], best)
        assert scores == sorted(scores, reverse=True) and 1 > scores[0] > 2 * scores[1] > 0
        assert sorted(x.sum() for x in ranked) == sorted(x.sum() for x in images)


def test_the_node_says_the_order_and_the_scores(nano, monkeypatch):
    said = []
    monkeypatch.setattr("comfyui_lance.nodes.rank.shown", lambda node_id: said.append)
    scenes, images = pictures(3)
    _, _, scores, index = rank(nano, images, captioned(world.describe(scenes[1])))
    (text,) = said
    assert index == 1 and text.startswith(f"Best first: picture 1 ({scores[0]:.3f}), ")
    assert text.endswith(f" ({scores[2]:.3f})")


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [(" a fox\n", "A fox."), ("A fox!", "A fox!"), ("a fox (red)", "A fox (red)"), ("一只狐狸", "一只狐狸")],
)
def test_a_prompt_is_scored_as_captions_are_written(prompt, caption):
    assert sentence(prompt) == caption


def test_the_clip_that_shows_the_prompt_is_first(nano):
    rng = random.Random(4)
    clips = [world.a_clip(rng, motion) for motion in ("right", "grows", "up")]
    frames = torch.cat([judge.image(scene) for clip in clips for scene in clip.frames])
    for i, clip in enumerate(clips):
        ranked, best, scores, index = rank(nano, frames, captioned(clip.describe()), world.FRAMES)
        assert index == i and torch.equal(best, frames.split(world.FRAMES)[i])
        assert len(scores) == 3 and len(ranked) == len(frames)


def test_the_picture_of_the_right_answer_is_first(nano):
    circle = world.Thing("circle", "red", 13, 32, 32)
    colors = ("red", "blue", "green")
    images = torch.cat([judge.image(world.Scene((replace(circle, color=color),), "white")) for color in colors])
    for i, color in enumerate(colors):
        other = colors[i - 1]
        alone = rank(nano, images, asked("What color is the circle?", color))
        beside = rank(nano, images, asked("What color is the circle?", color, other))
        assert alone[3] == beside[3] == i
        assert alone[2][0] > 0.5 and beside[2][0] > 0.9 and beside[2][-1] < 0.1
    assert rank(nano, images, asked("What color is the circle?", "red", "blue"))[2][-1] < 0.1


@pytest.mark.parametrize(
    ("images", "task", "frames", "sentence"),
    [
        (picture(n=0), captioned("a fox"), 1, "images holds no picture"),
        (picture(n=10), captioned("a fox"), 4, "10 frames are not clips of 4 each. Set frames as"),
        (picture(), captioned(" \n"), 1, "no prompt to rank by"),
        (picture(), asked("", "Yes"), 1, "no question or no answer"),
        (picture(), asked("Is it a fox?", " "), 1, "no question or no answer"),
        (picture(), None, 1, "task is none of its options. Choose one of: caption, question"),
    ],
)
def test_what_cannot_be_ranked_gets_a_sentence(lance, images, task, frames, sentence):
    with pytest.raises(ValueError, match=sentence):
        rank(lance, images, task, frames)
