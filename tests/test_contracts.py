"""How newer versions of ComfyUI call the plugin, where the one that runs these tests may be older.

What they pass was read from their own files, which the tests name.
"""

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from comfy_api.latest import InputImpl
from comfyui_lance.lance_model import tasks
from support.answers import ask
from support.pictures import clip_of, picture

GREEDY = {"do_sample": False, "max_length": 6, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0}
GENERATION = {**GREEDY, **PENALTIES, "seed": None}

# The options of comfy_extras/nodes_textgen.py beside the prompt, with nothing connected.
TEXTGEN_030 = {"image": None, "skip_template": False, "min_length": 1, "thinking": False, "video": None, "audio": None}
TEXTGEN_037 = {**TEXTGEN_030, "system_prompt": ""}
TEXTGEN_IMAGES = {**{name: value for name, value in TEXTGEN_037.items() if name != "image"}, "images": None}
# Clips and sound in the same way: told of the newest versions, whose file was not at hand.
TEXTGEN_LISTS = {
    **{name: value for name, value in TEXTGEN_IMAGES.items() if name not in ("video", "audio")},
    "videos": None,
    "audios": None,
}
VERSIONS = [TEXTGEN_030, TEXTGEN_037, TEXTGEN_IMAGES, TEXTGEN_LISTS]


def generate(clip, tokens: dict, **options) -> list[int]:
    """The calls of CLIP.generate (comfy/sd.py, 0.37 to 0.38.1): every option is always passed, `mtp` last."""
    clip.cond_stage_model.reset_clip_options()
    clip.load_model(tokens)
    clip.cond_stage_model.set_clip_options({"layer": None})
    clip.cond_stage_model.set_clip_options({"execution_device": clip.patcher.load_device})
    with comfy.model_management.cuda_device_context(clip.patcher.load_device):
        return clip.cond_stage_model.generate(tokens, **{**GENERATION, "mtp": True, **options})


def answer(clip, prompt: str, options: dict) -> str:
    return clip.decode(generate(clip, clip.tokenize(prompt, **options)))


@pytest.mark.parametrize("mtp", [True, False, 3])
def test_speculation_changes_no_answer(mtp, lance, caplog):
    """`mtp` is True for auto, False for off, or the depth (comfy_extras/nodes_textgen.py, 0.37 to 0.38.1)."""
    clip = lance[1]
    tokens = clip.tokenize("What is it?", **TEXTGEN_037)
    assert generate(clip, tokens, mtp=mtp) == clip.generate(tokens, **GENERATION)
    assert "does not know" not in caplog.text


def test_an_option_of_the_future_is_named_in_the_log(lance, caplog):
    clip = lance[1]
    tokens = clip.tokenize("What is it?")
    assert generate(clip, tokens, beams=4) == clip.generate(tokens, **GENERATION)
    assert "beams" in caplog.text


@pytest.mark.parametrize("options", VERSIONS)
def test_a_question_is_the_same_in_every_version(options, lance):
    assert answer(lance[1], "What is it?", options) == answer(lance[1], "What is it?", {})


def test_pictures_that_come_in_a_list(lance):
    """A socket for each after 0.37.0 (comfy_extras/nodes_textgen.py at 1ac2d834): a list of batches or None."""
    one, two = picture(seed=1), picture(seed=2)

    def ask(*images: torch.Tensor) -> str:
        return answer(lance[1], "What is it?", {**TEXTGEN_IMAGES, "images": list(images)})

    assert ask(one, two) == answer(lance[1], "What is it?", {**TEXTGEN_030, "image": torch.cat([one, two])})
    assert ask(one, two) == ask(torch.cat([one, two])) != ask(two, one)


def test_clips_that_come_in_a_list(lance):
    frames = picture(n=26)
    listed = answer(lance[1], "What moves?", {**TEXTGEN_LISTS, "videos": [frames]})
    assert listed == answer(lance[1], "What moves?", {**TEXTGEN_030, "video": frames})
    two = lance[1].tokenize("What moves?", **{**TEXTGEN_LISTS, "videos": [frames, frames[:1]]})["lance"]
    assert [medium.grid[0] for medium in two.media] == [7, 1] and two.target == "video"


@pytest.mark.parametrize("options", [{**TEXTGEN_030, "audio": {}}, {**TEXTGEN_LISTS, "audios": [{}]}])
def test_sound_is_refused(options, lance):
    with pytest.raises(ValueError, match="cannot hear"):
        lance[1].tokenize("What sounds?", **options)
    assert lance[1].tokenize("What sounds?", **{**TEXTGEN_LISTS, "audios": []})


@pytest.mark.parametrize("images", [[], None])
def test_pictures_for_other_models_are_refused_still(images, lance):
    """TextEncodeQwenImageEdit and its like pass `images` too, without Generate Text's other options."""
    assert lance[1].tokenize("a fox", images=images)
    with pytest.raises(ValueError, match="Lance Encode Image Edit"):
        lance[1].tokenize("a fox", images=[picture()])


def test_the_system_prompt_of_generate_text(lance):
    """An input since 0.37, "" where it is not connected; without the template there is none."""
    clip = lance[1]

    def read(system_prompt: str, **options) -> str:
        request = clip.tokenize("What is it?", **{**TEXTGEN_037, "system_prompt": system_prompt, **options})["lance"]
        generate(clip, {"lance": request}, max_length=1)
        segments = clip.cond_stage_model.question(request).segments
        return clip.decode([i for segment in segments for i in segment.ids], skip_special_tokens=False)

    assert read("Answer like a pirate.").startswith("<|im_start|>system\nAnswer like a pirate.<|im_end|>\n")
    assert tasks.ASSISTANT in read("") and tasks.ASSISTANT in read(" \n")
    assert read("Answer like a pirate.", skip_template=True) == "What is it?"


class CroppedVideo(InputImpl.VideoFromFile):
    """A clip that Load Video crops (0.35 on): its stream is the whole one, and `has_pending_frame_edits` says so
    (comfy_api/latest/_input/video_types.py)."""

    def has_pending_frame_edits(self) -> bool:
        return True

    def get_components(self):
        components = super().get_components()
        return replace(components, images=components.images[:, :, :32])


def test_a_clip_that_is_cropped_on_loading_is_seen_cropped(lance, tmp_path):
    clip_of(13).save_to(str(tmp_path / "clip.mp4"))
    cropped, whole = (kind(str(tmp_path / "clip.mp4")) for kind in (CroppedVideo, InputImpl.VideoFromFile))
    frames = InputImpl.VideoFromComponents(cropped.get_components())

    def told(video) -> list[str]:
        return ask(lance, video=video, video_resolution="video 192p", max_length=24)

    assert told(cropped) == told(frames) != told(whole)
