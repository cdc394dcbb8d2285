"""Models that do not belong together get a sentence at every node of ours that takes them, before anything runs."""

from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace

import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import pytest
import torch
from comfy.taesd.taesd import TAESD
from comfy_api.latest import InputImpl, Types
from comfyui_lance.nodes.answer import LanceAnswer, LanceEnhancePrompt
from comfyui_lance.nodes.edit import LanceEncodeEdit, LanceEncodeVideoEdit
from comfyui_lance.nodes.encode import LanceEncode
from comfyui_lance.nodes.frames import LanceImageToVideo
from comfyui_lance.nodes.guidance import LanceGuidance, LanceScheduler
from comfyui_lance.nodes.rank import LanceRank
from comfyui_lance.nodes.reference import LanceEncodeReferences
from comfyui_lance.nodes.resolution import KEEP
from support.answers import OFF, QUESTION, node
from support.sampling import sample, schedule

CPU = torch.device("cpu")
SMALL = "image 256"
PICTURE = torch.zeros(1, 64, 64, 3)
VIDEO = InputImpl.VideoFromComponents(Types.VideoComponents(images=PICTURE.repeat(5, 1, 1, 1), frame_rate=Fraction(12)))


def foreign_model():
    config = comfy.supported_models.SD15({"disable_unet_model_creation": True, "in_channels": 4})
    return comfy.model_patcher.ModelPatcher(comfy.model_base.BaseModel(config), CPU, CPU)


def foreign_clip():
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model = comfy.sd1_clip.SD1ClipModel(device="meta")
    clip.patcher = comfy.model_patcher.ModelPatcher(clip.cond_stage_model, CPU, CPU)
    clip.tokenizer, clip.tokenizer_options, clip.layer_idx = comfy.sd1_clip.SD1Tokenizer(), {}, None
    clip.apply_hooks_to_conds, clip.use_clip_schedule = None, False
    return clip


@pytest.fixture(scope="module")
def foreign() -> SimpleNamespace:
    """What the loader of a Stable Diffusion puts out."""
    return SimpleNamespace(model=foreign_model(), clip=foreign_clip(), vae=comfy.sd.VAE(sd=TAESD().state_dict()))


def edit(model, clip, vae):
    LanceEncodeEdit.execute(clip, vae, PICTURE, "Make it blue.", SMALL)


def video_edit(model, clip, vae):
    LanceEncodeVideoEdit.execute(clip, vae, VIDEO, "Make it blue.", KEEP, 12.0, 6.0)


def references(model, clip, vae):
    LanceEncodeReferences.execute(clip, vae, {"image0": PICTURE}, "A fox.", "image", SMALL)


def prompt(model, clip, vae):
    LanceEncode.execute(clip, "image", "A fox.")


def frames(model, clip, vae):
    LanceImageToVideo.execute(vae, KEEP, 9, 1, start=PICTURE)


def ask(model, clip, vae):
    node(LanceAnswer).execute(model, clip, QUESTION, 4, OFF, images={"image0": PICTURE}, image_resolution=SMALL)


def enhance(model, clip, vae):
    node(LanceEnhancePrompt).execute(model, clip, "A fox.", 4, OFF)


def rank(model, clip, vae):
    node(LanceRank).execute(model, clip, PICTURE, {"task": "caption", "prompt": "A fox.", "style": "accurate"})


def guidance(model, clip, vae):
    LanceGuidance.execute(model, 0.4, 1.0, "global")


def scheduler(model, clip, vae):
    LanceScheduler.execute(model, 4, 1.0)


def sampling(model, clip, vae):
    pair = LanceEncode.execute(clip, "image", "A fox.").result
    sample(model, *pair, torch.randn(1, 48, 1, 4, 4), schedule(1, 3.5))


FOREIGN = [
    *((use, "clip", "CLIP is another model's") for use in (edit, video_edit, references, prompt, ask, enhance, rank)),
    *((use, "vae", "but this VAE has 4") for use in (edit, video_edit, references, frames)),
    *((use, "model", "MODEL is another model's") for use in (ask, enhance, rank, guidance)),
    (scheduler, "model", "no flow shift. Connect the MODEL of Load Lance"),
]
MISSING = [
    *((use, "clip", "CLIP is missing in its loader's file") for use in (edit, video_edit, references, prompt, ask)),
    *((use, "vae", "but this VAE has none") for use in (edit, video_edit, references, frames)),
]
WIDTH = r"width \d+, but this MODEL has width \d+. Take MODEL and CLIP from the same Load Lance"


@pytest.mark.parametrize(("use", "wrong", "sentence"), FOREIGN)
def test_another_models_part_gets_a_sentence(use: Callable, wrong, sentence, lance, foreign):
    with pytest.raises(ValueError, match=sentence):
        use(**dict(zip(("model", "clip", "vae"), lance)) | {wrong: getattr(foreign, wrong)})


@pytest.mark.parametrize(("use", "wrong", "sentence"), MISSING)
def test_a_part_that_the_loaders_file_lacks_gets_a_sentence(use: Callable, wrong, sentence, lance):
    with pytest.raises(ValueError, match=sentence):
        use(**dict(zip(("model", "clip", "vae"), lance)) | {wrong: None})


@pytest.mark.parametrize("use", [ask, enhance, rank, sampling])
def test_parts_of_two_loaders_get_a_sentence(use, lance, nano):
    for model, clip in ((lance[0], nano[1]), (nano[0], lance[1])):
        with pytest.raises(ValueError, match=WIDTH):
            use(model, clip, lance[2])
