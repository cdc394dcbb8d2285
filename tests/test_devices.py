"""Several devices: what moves between them, what stays, and core's split over them."""

import subprocess
import sys
from pathlib import Path

import comfy.model_management
import comfy.patcher_extension
import torch
from comfy_extras.nodes_multigpu import MultiGPUCFGSplitNode
from comfyui_lance.lance_model import language
from sampling import sample, schedule

HOST = torch.device("cpu")


def test_on_a_pretend_card():
    command = [sys.executable, "-m", "pytest", "-q", Path(__file__).with_name("pretend_card.py")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


def test_the_contexts_of_long_videos_leave_small_cards_and_the_estimate(lance, monkeypatch):
    model, card = lance[0].model, torch.device("meta")
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: card)
    tokens, estimates = 40_000, []
    for gigabytes in (1, 24):
        memory = gigabytes * model._context_bytes(tokens)
        monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device, memory=memory: memory)
        assert model._kept_at(tokens, card) == (card if gigabytes == 24 else HOST)
        assert model._kept_at(tokens // 100, card) == card
        estimates.append(model.memory_required([1, 48, 1, 4, 6], {"sequences": [[1, 1, tokens]]}))
    assert estimates[1] - estimates[0] == model._context_bytes(tokens)


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
