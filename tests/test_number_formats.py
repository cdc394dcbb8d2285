"""All tasks in the number formats that ComfyUI chooses on cards: its decision functions are told what the card can do.

`benchmarks/formats.py` measures the same over whole runs and many prompts.
"""

import comfy.utils
import pytest
import torch
from comfyui_lance.dev.host import number_formats
from comfyui_lance.dev.host.number_formats import FORMATS
from comfyui_lance.lance_model import loading
from comfyui_lance.lance_model import nano as packed
from comfyui_lance.training import judge
from support.parity_case import ANSWERS, CASES, distances, load_case

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_memory")]

BF16, FP32 = torch.bfloat16, torch.float32
# Format → what is computed in, by MODEL and by CLIP, and how far from the reference the first velocity and the first
# logits may be: about one and a half times what benchmarks/formats.py found.
EXPECTED = {
    "bf16": (BF16, BF16, 0.015, 0.005),
    "fp8": (BF16, BF16, 0.07, 0.02),
    "fp8 fast": (BF16, BF16, 0.09, 0.03),
    "scaled fp8 file": (BF16, BF16, 0.07, 0.025),
    "mxfp8 file": (BF16, BF16, 0.07, 0.02),
    "NVFP4 file": (BF16, BF16, 0.27, 0.1),
    "no bf16 (Turing)": (FP32, FP32, 0.007, 0.003),
    "no bf16, float32 file": (FP32, FP32, 0.007, 0.003),
    "no fp8 (Apple)": (BF16, BF16, 0.07, 0.025),
    "MODEL bf16, CLIP float32": (BF16, FP32, 0.015, 0.005),
}
STEPS = 8  # enough for the demonstration model


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)


@pytest.fixture(scope="module", params=FORMATS)
def format(request):
    with FORMATS[request.param].chosen():
        yield request.param


def stored(format: str, checkpoint, folder):
    path = FORMATS[format].write(checkpoint, folder / "model.safetensors")
    return loading.load(path, weight_dtype=FORMATS[format].weight_dtype, folders=[folder])


@pytest.fixture(scope="module")
def seeded(format, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeded") / "Lance_3B"
    folder.mkdir()
    for name in ("Qwen2.5-VL-ViT", "Wan2.2_VAE.safetensors"):
        (folder.parent / name).symlink_to(tiny / name)
    return stored(format, tiny / "Lance_3B" / "model.safetensors", folder)


@pytest.fixture(scope="module")
def trained(format, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return stored(format, packed.checkpoint(folder), folder)


def test_every_format_has_its_expectations():
    assert EXPECTED.keys() == FORMATS.keys()


def test_what_is_computed_in_is_comfyuis_choice(format, seeded):
    model, clip, _ = seeded
    assert model.model.get_dtype_inference() == EXPECTED[format][0]
    assert clip.cond_stage_model.compute_dtype(clip.patcher.load_device) == EXPECTED[format][1]


@pytest.mark.parametrize("name", [*CASES, *ANSWERS])
def test_first_velocities_and_logits_are_near_the_references(name, format, seeded, parity_folder):
    found = distances(load_case(parity_folder, name), name, seeded, steps=1)
    allowed = {"velocity": EXPECTED[format][2], "logits": EXPECTED[format][3]}
    assert all(distance < allowed[kind] for kind, distance in found.items()), found


def test_every_task_is_right(format, trained):
    tester = judge.Judge(*trained, steps=STEPS)
    wrong = [task for task in judge.TASKS if judge.right(tester, task, 1) < 1]
    assert len(wrong) <= 1, wrong  # another processor may turn a close one


def test_cards_are_named_by_functions_that_comfyui_has():
    asked = {name for format in FORMATS.values() for name in format.card}
    assert all(callable(getattr(number_formats.comfy.model_management, name)) for name in asked)
