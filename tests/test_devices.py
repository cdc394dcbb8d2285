"""Several devices: what moves between them, what stays, and core's split over them."""

import subprocess
import sys
from pathlib import Path

import comfy.model_management
import comfy.patcher_extension
import pytest
import torch
from comfy_extras.nodes_multigpu import MultiGPUCFGSplitNode
from comfyui_lance.lance_model import language
from comfyui_lance.lance_model.sequence import CONDITIONING
from support.sampling import sample, schedule


@pytest.mark.slow
def test_on_a_pretend_card():
    command = [sys.executable, "-m", "pytest", "-q", Path(__file__).with_name("pretend_card.py")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


def test_contexts_leave_a_card_that_has_no_room_and_the_estimate(lance, monkeypatch):
    model, clip, _ = lance
    card, lance_model = torch.device("meta"), lance[0].model
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: card)
    sequence = language.encode_pair(clip, "a fox")[0][0][1][CONDITIONING]
    tokens = sum(len(segment) for segment in sequence.context)
    latents = torch.empty(1, 48, 1, 4, 6, device=card)
    activations = lance_model._activations(latents.shape, [tokens])
    weights = comfy.model_management.module_size(lance_model.diffusion_model)
    estimates = []
    for spare in (-1, 0):
        free = activations + lance_model.context_bytes(tokens) + spare
        monkeypatch.setattr(type(model), "get_free_memory", lambda self, device, free=free: free, raising=False)
        total = weights + free + comfy.model_management.extra_reserved_memory()
        monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device, total=total: total)
        monkeypatch.setattr(lance_model, "current_patcher", model)
        assert lance_model._stays(sequence, latents) == (spare == 0)
        estimates.append(lance_model.memory_required(latents.shape, {"sequences": [[1, 1, tokens]]}))
    assert estimates[1] - estimates[0] == lance_model.context_bytes(tokens)


def test_an_answers_memory_counts_its_keys_and_values(lance):
    model = lance[0].model
    few, many = (model.answer_memory(1000, length) for length in (1, 4001))
    assert many - few == model.context_bytes(4000) > 0


def test_cores_multi_gpu_split_gives_each_branch_to_a_copy_of_the_model(lance, monkeypatch):
    model, clip, _ = lance
    devices = [torch.device("cpu"), torch.device("cpu", 0)]  # two names of one device, which have a copy each
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current: devices)
    pair = language.encode_pair(clip, "A red fox sleeps under a birch tree in the snow.")
    noise = torch.randn(1, 48, 1, 4, 6, generator=torch.Generator().manual_seed(1))
    used = set()

    def note(executor, x, *args, **kwargs):
        options = args[-1]
        used.add((executor.class_obj, options["multigpu_thread_device"], len(x)))
        return executor(x, *args, **kwargs)

    noted = model.clone()
    noted.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, note)
    split = MultiGPUCFGSplitNode.execute(noted, 2).result[0]
    alone, shared = (sample(patcher, *pair, noise, schedule(4, 3.5)) for patcher in (model, split))
    assert torch.allclose(shared, alone, atol=1e-5)
    assert len({module for module, *_ in used}) == 2
    assert {device for _, device, _ in used} == set(devices) and {branches for *_, branches in used} == {1}
