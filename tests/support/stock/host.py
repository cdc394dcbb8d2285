"""ComfyUI with all of its own nodes and ours, in this process: graphs go through its own executor."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.utils
import comfyui_lance
import execution
import folder_paths
import server
import torch
from comfyui_lance.lance_model import nano
from comfyui_lance.nodes import comfy_entrypoint
from safetensors import safe_open
from safetensors.torch import save_file

import nodes

LORA = "lance_test_lora.safetensors"
FOLDERS = ("input", "output", "temp", "user")
REPOSITORY = comfyui_lance.REPOSITORY
Graph = dict[str, dict]  # node id → class_type and inputs, as POST /prompt takes it


class Look:
    """Keeps what arrives, by name."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "testing", "look", (), True
    seen: dict[str, list] = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING",), "value": ("*",)}}

    @classmethod
    def IS_CHANGED(cls, **inputs):
        return float("nan")

    def look(self, name: str, value):
        self.seen.setdefault(name, []).append(value)
        return ()


@dataclass
class Failure:
    """Of a node in a graph: where it happened, and what was said."""

    node: str
    type: str
    message: str
    frames: list[str] = field(default_factory=list)

    @property
    def stumbled(self) -> bool:
        """Whether it is a crash in Lance's own code."""
        return not self.raised and bool(self.frames) and str(REPOSITORY / "lance_model") in self.frames[-1]

    @property
    def raised(self) -> bool:
        """Whether ComfyUI's or Lance's code says so on purpose, rather than stumbles."""
        place, _, line = self.frames[-1].strip().partition("\n") if self.frames else ("", "", "raise")
        return line.strip().startswith(("raise ", "assert ")) and "site-packages" not in place

    def __str__(self) -> str:
        return f"{self.type}: {self.message}\n{''.join(self.frames[-2:])}"


@dataclass
class Outcome:
    """What the Look nodes of a graph saw, or why it did not come to that."""

    seen: dict[str, list]
    failure: Failure | None = None


class Host:
    """Runs graphs one after the other; what two in a row share is computed once, as in ComfyUI."""

    def __init__(self, prompt_server: server.PromptServer):
        cache = {"lru": 0, "ram": 0, "ram_inactive": 0}
        self.executor = execution.PromptExecutor(prompt_server, execution.CacheType.CLASSIC, cache)

    def run(self, graph: Graph) -> Outcome:
        # When a run through two patched MODELs failed, ComfyUI may keep an entry of nothing, and collects garbage at
        # every load from then on.
        loaded = comfy.model_management.current_loaded_models
        loaded[:] = [model for model in loaded if not model.is_dead()]
        graph, Look.seen = copy.deepcopy(graph), {}  # the executor leaves notes in it
        valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("test", graph, None))
        if not valid:
            return Outcome({}, refused(error, node_errors))
        self.executor.execute(graph, "test", {}, outputs)
        errors = [data for event, data in self.executor.status_messages if event == "execution_error"]
        return Outcome(Look.seen, failed(errors[0]) if errors else None)


def refused(error: dict, node_errors: dict) -> Failure:
    for node, found in node_errors.items():
        for each in found["errors"]:
            told = each["extra_info"].get("traceback", []) if each.get("extra_info") else []
            return Failure(node, "refused", f"{each['message']}: {each['details']}", told)
    return Failure("", "refused", f"{error['message']}: {error['details']}")


def failed(error: dict) -> Failure:
    message = error["exception_message"].strip()
    return Failure(error["node_id"], error["exception_type"].rsplit(".", 1)[-1], message, error["traceback"])


async def _load() -> None:
    await nodes.init_builtin_extra_nodes()
    lance = await comfy_entrypoint()
    await lance.on_load()
    for node in await lance.get_node_list():
        nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node
    nodes.NODE_CLASS_MAPPINGS["Look"] = Look


def lora(path: Path) -> None:
    """A LoRA for the demonstration model's generation expert."""
    generator = torch.Generator().manual_seed(0)
    layer = "language_model.model.layers.0.self_attn.o_proj_moe_gen"
    with safe_open(nano.PACKED, "pt") as file:
        rows, columns = file.get_slice(f"{layer}.weight").get_shape()
    sides = {"lora_A": (4, columns), "lora_B": (rows, 4)}
    sides = {side: torch.randn(shape, generator=generator) / 4 for side, shape in sides.items()}
    save_file({f"diffusion_model.{layer}.{side}.weight": weight for side, weight in sides.items()}, path)


@contextmanager
def host(base: Path) -> Iterator[Host]:
    """With folders of its own under `base`, none of a user's models in them."""
    kept = dict(nodes.NODE_CLASS_MAPPINGS), dict(folder_paths.folder_names_and_paths)
    directories = {name: getattr(folder_paths, f"get_{name}_directory")() for name in FOLDERS}
    models, instance = folder_paths.models_dir, getattr(server.PromptServer, "instance", None)
    for name in FOLDERS:
        (base / name).mkdir()
        getattr(folder_paths, f"set_{name}_directory")(str(base / name))
    for name, (_, suffixes) in kept[1].items():
        (base / "models" / name).mkdir(parents=True)
        folder_paths.folder_names_and_paths[name] = ([str(base / "models" / name)], suffixes)
    folder_paths.models_dir = str(base / "models")
    folder_paths.filename_list_cache.clear()
    loop, shown = asyncio.new_event_loop(), comfy.utils.PROGRESS_BAR_ENABLED
    comfy.utils.set_progress_bar_enabled(False)
    logging.disable(logging.ERROR)  # what fails is in the outcome
    try:
        lora(base / "models" / "loras" / LORA)
        prompt_server = server.PromptServer(loop)
        loop.run_until_complete(_load())
        yield Host(prompt_server)
    finally:
        loop.close()
        logging.disable(logging.NOTSET)
        comfy.utils.set_progress_bar_enabled(shown)
        folder_paths.models_dir, server.PromptServer.instance = models, instance
        nodes.NODE_CLASS_MAPPINGS.clear()
        nodes.NODE_CLASS_MAPPINGS.update(kept[0])
        folder_paths.folder_names_and_paths.clear()
        folder_paths.folder_names_and_paths.update(kept[1])
        folder_paths.filename_list_cache.clear()
        for name, directory in directories.items():
            getattr(folder_paths, f"set_{name}_directory")(directory)
