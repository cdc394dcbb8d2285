"""Runs the engines in turns and puts what they took beside what the device could do."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import roofline
import torch
import weights
from comfyui_lance.lance_model import loading
from engines import FULL, SMALL, Plugin, Reference, Result, Sample, Task

Row = dict[str, object]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return float((a - b).norm() / b.norm())


def table(rows: list[Row]) -> str:
    """Rows as Markdown, under the keys of the first."""
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def load(options: Namespace, dtype: str):
    """MODEL, CLIP and the folder of the weights, which are made where there are none."""
    stored = torch.float32 if dtype == "fp32" else torch.bfloat16
    folder: Path = options.cache / f"{options.size}-{str(stored).removeprefix('torch.')}"
    path = weights.write(folder, options.size, stored)
    model, clip, _ = loading.load(path, weight_dtype="fp8_e4m3fn" if dtype == "fp8" else "default")
    return model, clip, folder


class Benchmark:
    """The engines on one set of weights; `runners` take a sample, and for an answer its longest length."""

    def __init__(self, options: Namespace):
        self.options, self.dims = options, weights.DIMS[options.size]
        self.model, self.clip, folder = load(options, options.dtype)
        self.dtype = self.model.model.get_dtype_inference()  # on a CPU float32, whatever is stored
        self.device = roofline.measure(options.device, self.dtype)
        self.runners: dict[str, Callable[..., Result]] = {"plugin": Plugin(self.model, self.clip).run}
        if options.compile:
            self.runners["plugin, compiled"] = Plugin(self.model, self.clip, compiled=True).run
        self.runners["naive"] = Plugin(self.model, self.clip, naive=True).run
        if os.environ.get("LANCE_REF"):
            reference = Reference(folder, options.device, str(self.dtype).removeprefix("torch."), self.model)
            print(f"The reference runs with {reference.attention}.")
            self.runners["reference"] = reference.run

    def sample(self, task: Task) -> Sample:
        options = self.options
        return Sample(task, self.model, self.clip, options.steps, options.cfg, self.dtype, options.device)

    def measure(self) -> roofline.Device:
        """The device's rates, the best seen so far: another process may have been in the way."""
        now, best = roofline.measure(self.options.device, self.dtype), self.device
        self.device = roofline.Device(max(now.flops, best.flops), max(now.bandwidth, best.bandwidth))
        return self.device

    def generation(self, task: Task) -> list[Row]:
        """One row for each runner: the fastest of the rounds, after one that does not count."""
        sample, results = self.sample(task), {name: [] for name in self.runners}
        for _ in range(self.options.rounds + 1):
            for name, run in self.runners.items():
                results[name].append(run(sample))
        best = {name: min(runs[1:], key=lambda r: r.seconds) for name, runs in results.items()}
        tflop, bound = roofline.sampling(self.measure(), self.dims, self.options.dtype, sample.branches())
        return [
            {
                "task": f"{task}, {self.options.steps} steps",
                "run": name,
                "s a picture": f"{r.seconds:.2f}",
                "s a step": f"{r.seconds / self.options.steps:.3f}",
                "time": f"{r.seconds / best['plugin'].seconds:.2f}×",
                "target passes": r.target,
                "context passes (tokens)": f"{r.context} ({r.tokens})",
                "peak GB": f"{max(run.peak for run in results[name][1:]):.2f}",
                "TFLOP needed": f"{tflop:.3g}",
                "of the bound": f"{bound / r.seconds:.0%}",
                "distance": f"{distance(r.out, best['plugin'].out):.0e}" if name != "plugin" else "",
            }
            for name, r in best.items()
        ]

    def text(self, task: Task) -> list[Row]:
        """Tokens after the first, timed as the difference between a long answer and one of a single token."""
        sample, lengths = self.sample(task), (1, task.tokens + 1)
        runs = {(name, n): [] for name in self.runners if name in ("plugin", "reference") for n in lengths}
        for _ in range(self.options.rounds + 1):
            for (name, n), results in runs.items():
                results.append(self.runners[name](sample, n))
        known = len(sample.sequence.token_ids()) + task.tokens / 2
        bound = roofline.token(self.measure(), self.dims, self.options.dtype, known)
        ids, rows = runs["plugin", lengths[1]][0].out, []
        for name in {name: None for name, _ in runs}:
            first, whole = (min(r.seconds for r in runs[name, n][1:]) for n in lengths)
            last = runs[name, lengths[1]][-1]
            each = (whole - first) / (len(last.out) - 1)
            rows.append(
                {
                    "task": str(task),
                    "run": name,
                    "s to the first token": f"{first:.2f}",
                    "tokens a second": f"{1 / each:.1f}",
                    "of the bandwidth bound": f"{bound / each:.0%}",
                    "peak GB": f"{last.peak:.2f}",
                    "ids as the plugin's": f"{sum(a == b for a, b in zip(last.out, ids))} of {len(ids)}",
                }
            )
        return rows


def dtypes(options: Namespace) -> list[Row]:
    """The first velocity of t2i in other dtypes, from the same bfloat16 weights, beside float32's."""
    velocities, task = {}, SMALL[0]
    for dtype in ("fp32", "bf16", "fp8"):
        model, clip, _ = load(options, dtype)
        model.set_model_compute_dtype(torch.float32 if dtype == "fp32" else torch.bfloat16)
        sample = Sample(task, model, clip, 1, 1.0, torch.float32, "cpu")
        velocities[dtype] = sample.noise[0].movedim(0, -1) - Plugin(model, clip).sample(sample)
    return [
        {f"first velocity of {task} in": dtype, "distance from fp32": f"{distance(v, velocities['fp32']):.1e}"}
        for dtype, v in velocities.items()
        if dtype != "fp32"
    ]


@torch.inference_mode()
def run(options: Namespace) -> None:
    if options.device == "cpu":
        torch.set_num_threads(1)
    benchmark = Benchmark(options)
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()}, one thread"
    tasks = [task for task in (FULL if options.size == "3b" else SMALL) if task.name in options.tasks]
    found = {
        "device": name,
        "options": {key: str(value) for key, value in vars(options).items()},
        "generation": [row for task in tasks if task.target for row in benchmark.generation(task)],
        "text": [row for task in tasks if not task.target for row in benchmark.text(task)],
        "dtypes": dtypes(options) if options.size != "3b" else [],
    }
    rates = benchmark.device
    found["rates"] = dataclasses.asdict(rates)
    print(f"{options.size} in {options.dtype} on {name}, torch {torch.__version__}:", end=" ")
    print(f"{rates.flops / 1e12:.3g} TFLOP/s, {rates.bandwidth / 1e9:.3g} GB/s\n")
    for rows in (found["generation"], found["text"], found["dtypes"]):
        if rows:
            print(table(rows) + "\n")
    if options.out:
        options.out.write_text(json.dumps(found, indent=2))
