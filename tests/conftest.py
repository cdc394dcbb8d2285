"""The real ComfyUI, in this process: its folder comes from PYTHONPATH, as `scripts/test.sh` sets it."""

import ctypes
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from comfy.cli_args import args
from comfyui_lance import REPOSITORY

args.cpu = not torch.cuda.is_available()
args.use_pytorch_cross_attention = True
torch.set_num_threads(1)  # tiny layers gain nothing from threads, and wait long for them on a busy machine

# A terminated run leaves its fixtures properly, which stops their server.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def is_quick(item: pytest.Item) -> bool:
    return not any(item.get_closest_marker(mark) for mark in ("slow", "server", "browser"))


# What one process runs together, as it shares a server, which takes long to start.
TOGETHER = {
    "browser": "browser apps blueprints documentation".split(),
    "server": "server demo training limits readme interface notes".split(),
    "lance_server": "ray pipelines paper as_opened".split(),
}
# Other files of half a minute and more. What is begun last should be short.
LONG = "stock_nodes nano devices honest_use number_formats convert_memory samplers endurance".split()


def group_of(file: str | Path) -> str:
    name = Path(file).stem.removeprefix("test_")
    return next((group for group, names in TOGETHER.items() if name in names), name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what uses the server. First the files that are quick, so that a failure shows early, the larger ones first;
    then the others, the longest first."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if {"lance_server", "server"} & set(item.fixturenames):
            item.add_marker("server")
            assert group_of(item.path) in TOGETHER, f"{item.path.name} belongs into TOGETHER"
        files.setdefault(item.path, []).append(item)
    order = [*TOGETHER, *LONG]

    def rank(path: Path) -> tuple[bool, int, int]:
        group = group_of(path)
        if group in order:
            return True, order.index(group), -len(files[path])
        return not all(map(is_quick, files[path])), len(order), -len(files[path])

    items[:] = [item for path in sorted(files, key=rank) for item in files[path]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Models this small use one core, and what asks a server waits for it: one more than cores, while memory lasts."""
    return min(os.cpu_count() + 1, 6)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Whole files as `--dist loadfile`, and those of TOGETHER in one process."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(super()._split_scope(nodeid))

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def tokenizer():
    """All models of a run share one: it takes longest to build of their parts."""
    from comfyui_lance.lance_model import language, loading

    tokenizer = language.LanceTokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "LanceTokenizer", lambda: tokenizer)
        yield tokenizer


@pytest.fixture(autouse=True)
def no_remembered_choices():
    """ComfyUI remembers in which format it adds LoRAs, also what it chose while a test told it of another card."""
    import comfy.model_management  # once its settings are made

    comfy.model_management.LORA_COMPUTE_DTYPES.clear()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The tiny seeded checkpoint in the official layout."""
    from comfyui_lance.dev.host import tiny_checkpoint

    out = tmp_path_factory.mktemp("tiny")
    tiny_checkpoint.write(out)
    return out


@pytest.fixture(scope="session")
def parity_folder() -> Path:
    return Path(os.environ.get("LANCE_PARITY_CASES", REPOSITORY / "tests" / "parity"))


@pytest.fixture(scope="module")
def held(tiny):
    """The tiny checkpoint in use, as by another workflow: what is loaded of it again shares its weights."""
    from comfyui_lance.lance_model import loading

    return loading.load(tiny / "Lance_3B" / "model.safetensors")


@pytest.fixture()
def lance(held, tiny):
    """(MODEL, CLIP, VAE) of the tiny checkpoint."""
    from comfyui_lance.lance_model import loading

    return loading.load(tiny / "Lance_3B" / "model.safetensors")


@pytest.fixture()
def noise() -> torch.Tensor:
    """Of a small picture."""
    return torch.randn(1, 48, 1, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture()
def pair(lance):
    """Positive and negative CONDITIONING of a prompt."""
    from comfyui_lance.lance_model import language
    from support.sampling import PROMPT

    return language.encode_pair(lance[1], PROMPT)


@pytest.fixture()
def contexts(monkeypatch) -> list[int]:
    """Grows by the number of context tokens at each context pass."""
    from comfyui_lance.lance_model.transformer import LanceTransformer

    counted, original = [], LanceTransformer.context

    def counting(self, und, gen, *args, **kwargs):
        counted.append(und.shape[1] + (0 if gen is None else gen.shape[1]))
        return original(self, und, gen, *args, **kwargs)

    monkeypatch.setattr(LanceTransformer, "context", counting)
    return counted


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    """(MODEL, CLIP, VAE) of the demonstration model."""
    from comfyui_lance.lance_model import loading, nano

    return loading.load(nano.checkpoint(tmp_path_factory.mktemp("nano")))


@pytest.fixture(scope="module")
def kept_memory():
    """glibc gives large blocks back at once, and the kernel clears each anew: most of the time of an answer of the
    demonstration model, whose head is cast at every token. Not for what measures memory."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    trim_threshold, mmap_max = -1, -4  # malloc.h
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    yield
    libc.mallopt(mmap_max, 65536)
    libc.mallopt(trim_threshold, 128 << 10)
    libc.malloc_trim(0)


def keeping_server(weights: Path | None = None):
    """That keeps memory as `kept_memory` does."""
    from comfyui_lance.dev.host.server import ComfyServer

    server = ComfyServer(weights)
    server.environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
    return server


@pytest.fixture(scope="session")
def server():
    """A running ComfyUI with the plugin, which has no weights but the demonstration model's."""
    with keeping_server() as server:
        yield server


@pytest.fixture(scope="session")
def lance_server():
    """A running ComfyUI with the plugin and the tiny checkpoint."""
    from comfyui_lance.dev.host.server import tiny_weights

    with keeping_server(tiny_weights()) as server:
        yield server
