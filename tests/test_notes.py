"""What changes nothing is said, on the node and in the log: spellings of other models' prompts, masks of nothing."""

from __future__ import annotations

import pytest
import torch
from comfyui_lance.dev.host import workflows
from comfyui_lance.dev.host.watching import watch
from comfyui_lance.lance_model import language
from comfyui_lance.nodes.edit import LanceEncodeEdit, LanceEncodeVideoEdit
from comfyui_lance.nodes.resolution import KEEP
from support.pictures import clip_of, picture

SPELLINGS = ["(red fur:1.2)", "embedding:style.pt", "<lora:style:0.8>", "{snow|sand}", "BREAK"]


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling_of_other_models_is_noted(spelling, lance, caplog):
    language.encode_pair(lance[1], f"a fox, {spelling} in the snow", "blurred")
    (said,) = warnings(caplog)
    assert said.startswith(f"Read as plain words: {spelling}.")


def test_all_spellings_of_a_prompt_are_noted_at_once(lance, caplog):
    lance[1].tokenize(", ".join([*SPELLINGS, *SPELLINGS]))
    (said,) = warnings(caplog)
    assert all(said.count(spelling) == 1 for spelling in SPELLINGS)


@pytest.mark.parametrize(
    "prompt",
    ["a fox (and a hare) at 16:9", "a clock (10:30)", "a sign: COFFEE BREAK", "the tag <b>", "a {brace}", "LoRA: 0.8"],
)
def test_plain_words_are_not_noted(prompt, lance, caplog):
    lance[1].tokenize(prompt)
    assert not warnings(caplog)


def edit(lance, mask: torch.Tensor, pictures: torch.Tensor, resolution: str = KEEP) -> None:
    LanceEncodeEdit.execute(*lance[1:], pictures, "Make it blue.", resolution, mask=mask)


def edit_clip(lance, mask: torch.Tensor) -> None:
    clip = clip_of(5, width=96, height=64)
    LanceEncodeVideoEdit.execute(*lance[1:], clip, "Make it blue.", KEEP, 12.0, 6.0, mask=mask)


def test_a_mask_of_nothing_is_noted(lance, caplog):
    nothing, all_of_it = torch.zeros(1, 64, 96), torch.ones(1, 64, 96)
    edit(lance, all_of_it, picture(n=2))
    edit_clip(lance, all_of_it)
    assert not warnings(caplog)
    edit(lance, torch.cat([all_of_it, nothing]), picture(n=2))
    edit_clip(lance, nothing)
    assert [said.split(".")[0] for said in warnings(caplog)] == ["With this mask nothing will change"] * 2


def test_a_mask_of_what_is_cropped_away_is_noted(lance, caplog):
    mask = torch.zeros(1, 64, 200)
    mask[..., :8] = 1
    edit(lance, mask, picture(200, 64), "image 256")
    assert "cropped" in caplog.text


def test_the_nodes_show_it(server):
    prompt = workflows.load("masked_edit")
    (edit,) = workflows.of_type(prompt, "LanceEncodeEdit")
    workflows.of_type(prompt, "KSampler")[0]["steps"] = 1
    edit["prompt"] = "make it (blue:1.3)"
    prompt["black"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 96, "height": 96}}
    prompt["picture"] = {"class_type": "EmptyImage", "inputs": {"width": 96, "height": 96, "batch_size": 1, "color": 0}}
    edit |= {"image": ["picture", 0], "mask": ["black", 0]}
    run = watch(server.url, prompt)
    assert run.end == "execution_success", run.error
    assert any("(blue:1.3)" in words and "nothing will change" in words for words in run.words)
