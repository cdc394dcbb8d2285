"""Every node on a pretend card, whose tensors must not meet the computer's: the CPU's results, few waits, few launches.

PyTorch keeps such a device for the rest of the process, so `test_devices.py` runs this in one of its own.
"""

import sys
from pathlib import Path
from unittest import mock

import comfy.model_management
import comfy.sample
import comfy.samplers
import folder_paths
import pytest
import torch
from comfy.model_management import VRAMState
from comfy.quant_ops import ck
from comfyui_lance.dev.host import pretend
from comfyui_lance.dev.host.pretend import Count
from comfyui_lance.lance_model import generation, language, loading
from comfyui_lance.lance_model.media import preprocess
from comfyui_lance.lance_model.nano import RESOLUTION
from comfyui_lance.nodes.answer import LanceAnswer, LanceEnhancePrompt
from comfyui_lance.nodes.edit import LanceEncodeEdit, LanceEncodeVideoEdit
from comfyui_lance.nodes.encode import LanceEncode
from comfyui_lance.nodes.frames import LanceImageToVideo
from comfyui_lance.nodes.guidance import LanceGuidance, LanceScheduler
from comfyui_lance.nodes.latent import EmptyLanceLatent
from comfyui_lance.nodes.loader import FOLDER, NANO, LoadLance
from comfyui_lance.nodes.rank import LanceRank
from comfyui_lance.nodes.reference import LanceEncodeReferences
from support.answers import OFF, QUESTION, node
from support.pictures import clip_of, picture

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
STEPS, SMALL, NO_ROOM = 4, "demonstration 64x64", 1
BF16_FAR = 0.1  # of a pixel in 0..1; measured 0.01 on the edit, 0.04 on the clip's
DRAWN = {"sampling": "on", "temperature": 0.8, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.05, "seed": 3}

pytestmark = pytest.mark.skipif(pretend.device() is None, reason="this PyTorch cannot pretend to have another device")


def painted(model, vae, positive, negative, latent: dict, counts: list | None = None, card=None) -> torch.Tensor:
    """Samples as SamplerCustomAdvanced does, two steps with both branches and two with one, and decodes; `counts` gets
    the card's after every step."""
    model = LanceGuidance.execute(model, 0.8, 1.0, "global").args[0]
    samples = latent["samples"]
    out = comfy.sample.sample_custom(
        model,
        comfy.sample.prepare_noise(samples, 5),
        4.0,
        comfy.samplers.sampler_object("euler"),
        LanceScheduler.execute(model, STEPS, 1.0).args[0],
        positive,
        negative,
        samples,
        noise_mask=latent.get("noise_mask"),
        callback=None if counts is None else lambda *_: counts.append(card.count()),
        disable_pbar=True,
    )
    assert out.device == comfy.model_management.intermediate_device()
    return vae.decode(out)


def size(frames: int, batch: int = 1) -> dict:
    return EmptyLanceLatent.execute({"size": "demonstration 64x64"}, frames, batch).args[0]


def make_picture(model, clip, vae, **counting):
    return painted(model, vae, *LanceEncode.execute(clip, "image", "a red circle").args, size(1, 2), **counting)


def make_clip(model, clip, vae, **counting):
    return painted(model, vae, *LanceEncode.execute(clip, "video", "a red circle").args, size(9), **counting)


def edit(model, clip, vae, **counting):
    mask = torch.zeros(1, 64, 96)
    mask[:, 20:] = 1
    outputs = LanceEncodeEdit.execute(clip, vae, picture(), "make it blue", SMALL, mask).args
    return painted(model, vae, *(output[0] for output in outputs), **counting)


def edit_clip(model, clip, vae, **counting):
    *outputs, _ = LanceEncodeVideoEdit.execute(clip, vae, clip_of(9), "make it blue", SMALL, 12.0, 6.0).args
    return painted(model, vae, *outputs, **counting)


def place_subject(model, clip, vae, **counting):
    pair = LanceEncodeReferences.execute(clip, vae, {"image0": picture(n=2)}, "both of them", "image", SMALL).args
    return painted(model, vae, *pair, size(1), **counting)


def move_picture(model, clip, vae, **counting):
    latent = LanceImageToVideo.execute(vae, SMALL, 9, 1, picture(), picture()).args[0]
    return painted(model, vae, *LanceEncode.execute(clip, "video", "it moves").args, latent, **counting)


def say(model, clip, vae, sampling=OFF, **media):
    media |= {"image_resolution": SMALL, "video_resolution": SMALL}
    return node(LanceAnswer).execute(model, clip, QUESTION, 9, sampling, **media).args[0]


def tell_picture(model, clip, vae):
    return say(model, clip, vae, images={"image0": picture()})


def tell_clip(model, clip, vae):
    return say(model, clip, vae, video=clip_of(9))


def tell_drawn(model, clip, vae):
    return say(model, clip, vae, DRAWN, images={"image0": picture()})


def enhance(model, clip, vae):
    seen = {"image": picture(), "image_resolution": SMALL}
    return node(LanceEnhancePrompt).execute(model, clip, "a circle", 9, OFF, **seen).args[0]


def rank(model, clip, vae):
    asked = {"task": "question", "question": "What is it?", "answer": "a circle", "other_answer": "a star"}
    *_, scores, index = node(LanceRank).execute(model, clip, picture(n=2), asked, 1, SMALL, SMALL).args
    return index, [round(score, 2) for score in scores]


PAINTING = (make_picture, make_clip, edit, edit_clip, place_subject, move_picture)
TELLING = (tell_picture, tell_clip, tell_drawn, enhance, rank)
SOME = (edit, make_clip, tell_picture)
SETTINGS = {  # what ComfyUI is told, and what is run
    "float32": ({"bf16": False}, (*PAINTING, *TELLING)),
    "bf16": ({}, (edit, edit_clip, tell_drawn)),
    "weights in the computer's memory": ({"bf16": False, "vram": VRAMState.NO_VRAM}, SOME),
    "no room": ({"bf16": False, "memory": NO_ROOM}, (edit_clip,)),
    "CLIP on the card alone": ({"bf16": False, "model": False}, (edit, tell_picture)),
    "MODEL on the card alone": ({"bf16": False, "clip": False}, (edit, tell_picture)),
}


def load():
    return LoadLance.execute(NANO, "default", "auto", "auto").args


@pytest.fixture(scope="session", autouse=True)
def folders(tmp_path_factory):
    folder_paths.add_model_folder_path(FOLDER, str(tmp_path_factory.mktemp("models")))
    with mock.patch.object(folder_paths, "temp_directory", str(tmp_path_factory.mktemp("temp"))):
        yield


@pytest.fixture(scope="session")
def expected():
    """What the CPU makes."""
    with torch.inference_mode():
        parts = load()
        return {job: job(*parts) for job in (*PAINTING, *TELLING)}


def forget():
    """What is loaded belongs to the device as it was."""
    comfy.model_management.current_loaded_models.clear()
    loading._in_use.clear()


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_the_card_makes_is_what_the_cpu_makes(expected, setting):
    settings, jobs = SETTINGS[setting]
    forget()
    with pretend.comfyui(**settings) as card:
        parts = load()
        for job in jobs:
            before, out = card.count(), job(*parts)
            used = card.count().since(before)
            assert used.launches and used.there and used.back, job.__name__
            if job in TELLING:
                assert out == expected[job] or setting == "bf16", job.__name__
            else:
                far = (out - expected[job]).abs().max()
                assert far < (BF16_FAR if setting == "bf16" else 1e-3), job.__name__
    forget()


def test_what_it_says_is_the_same_where_silu_and_product_are_one_kernel(expected):
    forget()
    with pretend.comfyui(bf16=False) as card, mock.patch.object(comfy.model_management, "is_nvidia", lambda: True):
        assert tell_picture(*load()) == expected[tell_picture]
    forget()
    assert card.launches["aten.glu_jvp.default"]


def step_counts(job, **settings) -> tuple[list[Count], object]:
    """What each step but the first takes, and the MODEL."""
    forget()
    counts = []
    with pretend.comfyui(**settings) as card:
        model, clip, vae = load()
        job(model, clip, vae, counts=counts, card=card)
    forget()
    return [now.since(then) for then, now in zip(counts, counts[1:])], model.model


@pytest.mark.parametrize("job", [edit, move_picture], ids=lambda job: job.__name__)
def test_a_step_waits_for_the_card_once_and_moves_nothing(job):
    (both, _, one), _ = step_counts(job)  # the first of each kind also sends its positions over
    assert both.waits <= 1 and one.waits <= 1
    assert both[3:] == one[3:] == (0, 0)


def test_weights_that_wait_in_the_computers_memory_move_once_for_both_branches():
    (both, _, one), model = step_counts(make_picture, vram=VRAMState.NO_VRAM)
    unread = "layers.{last}.self_attn.q_ layers.{last}.self_attn.o_ layers.{last}.post_ layers.{last}.mlp. model.norm."
    unread = unread.format(last=len(model.diffusion_model.layers) - 1).split()
    weights = model.diffusion_model.named_parameters()
    read = [w.nbytes for name, w in weights if "_moe_gen" in name or not any(part in name for part in unread)]
    assert both.there == one.there == sum(read)
    assert both.attention == 2 * one.attention


def test_a_context_that_waits_in_the_computers_memory_moves_once_a_pass():
    (both, _, one), model = step_counts(edit_clip, memory=NO_ROOM)  # where the branches go one after the other
    weights = step_counts(edit_clip, vram=VRAMState.NO_VRAM)[0][-1].there
    tokens = [moved / model.context_bytes(1) for moved in (both.there - 2 * weights, one.there - weights)]
    # Without the prompt, its own branch is a little shorter; both have 12 vision tokens and 48 latents.
    assert tokens[0] == int(tokens[0]) and 60 < tokens[1] < tokens[0] < 2 * tokens[1]
    assert max(both.waits, one.waits) <= 1


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 0.8, "repetition_penalty": 1.1}], ids=str)
def test_an_answer_waits_for_the_card_once_in_eight_tokens(sampling):
    counts = []
    with pretend.comfyui() as card, mock.patch.object(generation, "IM_END", -1):
        model, clip, _ = load()
        request = language.Request("What is it?", media=(preprocess(picture(), RESOLUTION),))

        def note(ids: list[int]) -> None:
            counts.append((len(ids), card.count()))

        language.answer(clip, model, request, max_length=25, on_tokens=note, **sampling)
    forget()
    assert [tokens for tokens, _ in counts] == [8, 16, 24, 25]
    for (_, then), (_, now) in zip(counts[:2], counts[1:3]):
        assert now.since(then).waits == 1


def test_the_3b_model_launches_no_more_than_the_benchmarks_say(tmp_path):
    sys.path.append(str(BENCHMARKS))
    import counts

    written = (BENCHMARKS / "README.md").read_text(encoding="utf-8").partition("| what | launches |")[2]
    table = {}
    for line in written.partition("\n\n")[0].splitlines()[2:]:
        what, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        table[what] = [float(cell.split("→")[-1].strip().replace(",", "")) for cell in cells]
    for what, count in counts.measure(tmp_path, counts.LOADS[:1]):
        measured = (*count[:3], *(round(size / 1e6, 2) for size in count[3:]))
        assert all(now <= most for now, most in zip(measured, table[what], strict=True)), (what, measured)


@pytest.fixture()
def card():
    with torch.inference_mode(), pretend.Card() as card:
        yield card


def test_the_pretend_card_takes_no_tensor_of_the_computer(card):
    here, there = torch.ones(3), torch.ones(3, device=pretend.device())
    for mix in (
        lambda: there + here,
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: here.add_(there),
        lambda: torch.nn.functional.linear(there, torch.ones(2, 3)),
        lambda: here[torch.zeros(1, dtype=torch.int64, device=pretend.device())],
    ):
        with pytest.raises(RuntimeError):
            mix()
    assert torch.equal((there * torch.tensor(2.0)).cpu(), 2 * here)
    assert there[torch.tensor([0, 1])].device == pretend.device()


@pytest.mark.parametrize(
    ("waits", "what"),
    [
        (1, lambda x: float(x[0])),
        (1, lambda x: x.tolist()),
        (1, lambda x: x.cpu()),
        (0, lambda x: x.to("cpu", non_blocking=True)),
        (1, lambda x: bool(x[0] > 0)),
        (1, lambda x: x[x > 0]),
        (0, lambda x: x.masked_fill_(x > 0, 1.0)),
        (1, lambda x: torch.equal(x, x)),
        (1, lambda x: torch.tensor([1.0], device=x.device)),
        (1, lambda x: x.nonzero()),
        (2, lambda x: torch.multinomial(x, 1)),
        (0, lambda x: (x[1:] * 2).sum().expand(3)),
    ],
)
def test_the_pretend_card_counts_waits(card, waits, what):
    x = torch.ones(4, device=pretend.device())
    before = card.count()
    what(x)
    assert card.count().since(before).waits == waits


@pytest.mark.parametrize(
    ("launches", "what"),
    [
        (1, lambda x: x + x),
        (0, lambda x: x.T[:2].unflatten(0, (2, 1))),
        (1, lambda x: torch.nn.functional.linear(x, x, x[0])),
        (2, lambda x: torch.addmm(x, x, x)),
        (1, lambda x: torch.addmm(x[0], x, x)),
        (1, lambda x: torch.empty_like(x).addmm_(x, x)),
        (1, lambda x: torch.addmm(x[0], x, x, out=torch.empty_like(x))),
    ],
)
def test_the_pretend_card_counts_launches(card, launches, what):
    x = torch.ones(4, 4, device=pretend.device())
    before = card.count()
    what(x)
    assert card.count().since(before).launches == launches


def test_a_rotation_in_place_is_a_launch_and_of_two_tensors_unlike_each_other_two(card):
    heads, scale = torch.ones(1, 1, 4, 32, device=pretend.device()), torch.ones(32, device=pretend.device())
    rotation = torch.ones(1, 1, 1, 16, 2, 2, device=pretend.device())
    counts = [card.count()]
    ck.rms_rope_split_half1_(heads.clone(), rotation, scale)
    counts.append(card.count())
    for fewer in (4, 2):
        ck.rms_rope_split_half(heads, heads[:, :, :fewer], rotation, scale, scale)
        counts.append(card.count())
    launches = [now.since(then).launches for then, now in zip(counts, counts[1:])]
    assert launches == [2, 1, 2]  # the first with its copy
