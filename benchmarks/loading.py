"""Load Lance beside a raw read of its file, each from a cold file.

    bash scripts/benchmark.sh loading [--size tiny|300m|3b]

The weights are the benchmarks' random ones, made where there are none. Where ComfyUI has dynamic VRAM the file is
mapped and read at the first use, by ComfyUI's own way to the card; elsewhere it is read at once, and the first use is
every page once.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from comfy.cli_args import args as comfy_args
from meter import forget_peak, peak

BLOCK = 1 << 24
PAGE = 4096


def own() -> float:
    """GB of this process's own memory, mapped files left out."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("RssAnon"))


def forget(path: Path) -> None:
    """Takes the file out of the system's cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> None:
    buffer = bytearray(BLOCK)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def use(model, management) -> None:
    """Brings the weights to where they are computed with."""
    management.load_models_gpu([model])
    if management.is_device_cpu(model.load_device):
        for weight in model.model.diffusion_model.parameters():
            weight.detach().view(-1).view(torch.uint8)[::PAGE].sum()
    else:
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--size", choices=("tiny", "300m", "3b"), default="3b" if cuda else "300m")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "lance-benchmarks", help="for weights")
    options = parser.parse_args()
    comfy_args.cpu = not cuda
    import comfy.model_management as management
    import weights
    from comfyui_lance.lance_model import loading

    path = weights.write(options.cache / f"{options.size}-bfloat16", options.size, torch.bfloat16)
    size, parts = path.stat().st_size / 1e9, []
    print("| | GB | s | GB/s | own GB | at most GB, mapped file included |\n| --- |" + " ---: |" * 5)

    def row(name: str, size: float, act: Callable[[], object]) -> None:
        forget_peak("cpu")
        start = time.monotonic()
        act()
        seconds = time.monotonic() - start
        amounts = f"{size:.2f} | {seconds:.2f} | {size / seconds:.2f}" if size else f" | {seconds:.2f} | "
        print(f"| {name} | {amounts} | {own():.2f} | {peak('cpu'):.2f} |", flush=True)

    row("before", 0, lambda: None)
    for _ in range(options.rounds):  # in turns, as below the system's cache a disk has its own
        forget(path)
        row("raw read", size, lambda: read(path))
        forget(path)
        row("Load Lance", 0, lambda: parts.extend(loading.load(path)))
        experts = parts[0].model_size() / 1e9
        row("first use of the experts", experts, lambda: use(parts[0], management))
        management.unload_all_models()
        parts.clear()
        gc.collect()


if __name__ == "__main__":
    main()
