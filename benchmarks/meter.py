"""What plugin and reference are measured with, each in its own process."""

from __future__ import annotations

import time
from pathlib import Path

import torch


def now(device: str) -> float:
    """Seconds. On a CPU those that this process has computed for, in one thread: others may use the machine too."""
    return time.process_time() if device == "cpu" else time.perf_counter()


def forget_peak(device: str) -> None:
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> float:
    """GB at the highest since `forget_peak`: resident in this process, or allocated by PyTorch on the GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e9
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM"))
