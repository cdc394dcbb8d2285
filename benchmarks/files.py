"""What the files of `scripts/convert.py` cost in quality: each is made from the demonstration model and judged.

    bash scripts/benchmark.sh files [--count 20] [--steps 12] [--files bf16,nvfp4]

A cell is the share of right results and how far these are from those of float32 for the same prompts and noise, root
mean square in levels of 255; of captions, the share that is not float32's word for word. GB are those of the 3B model's
projections in such a file. Computed in bf16, as on cards; products of int8 are such, those of fp8 and FP4 are not.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch
from comfy.cli_args import args as comfy_args

FLOAT32 = "float32"
# File → the options of scripts/convert.py; --dtype and those after --keep.
FILES = {
    FLOAT32: (),
    "bf16": ("bf16",),
    "fp8": ("fp8",),
    "mxfp8": ("mxfp8",),
    "int8": ("int8",),
    "nvfp4": ("nvfp4",),
    "nvfp4, understanding kept": ("nvfp4", "understanding"),
    "nvfp4, generation kept": ("nvfp4", "generation"),
    "nvfp4, ends kept": ("nvfp4", "ends"),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="prompts a task")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", default="", help="those with one of these words, by commas; default: all")
    return parser.parse_args()


def gigabytes(convert, options: tuple[str, ...]) -> float:
    """Of the 3B model's projections in a file of these options."""
    import weights
    from comfyui_lance.lance_model.transformer import LanceTransformer

    module = LanceTransformer(**weights.DIMS["3b"], channels=48, device="meta", operations=torch.nn)
    shapes = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    part = convert.Part(convert.Header(Path(), shapes, dict.fromkeys(shapes, "BF16")), {name: name for name in shapes})
    projections = convert.projections(part, "fp8", ())
    smaller = convert.projections(part, options[0], options[1:]) if options else ()
    size = 0
    for name in projections:
        if name in smaller:
            size += sum(tensor.size for tensor in convert.quantised(name, part, name, options[0]))
        else:
            size += numpy.prod(shapes[name]) * (2 if options else 4)
    return size / 1e9


def judged(loaded, options: argparse.Namespace) -> dict[str, tuple[float, list]]:
    """Task → the share of right results, and what was made."""
    from comfyui_lance.training import judge

    class Recorder(judge.Judge):
        def sample(self, *args):
            made.append(super().sample(*args))
            return made[-1]

        def captioned(self, scene):
            made.append(super().captioned(scene))
            return made[-1]

    tester, found = Recorder(*loaded, steps=options.steps), {}
    for task in judge.TASKS:
        made = []
        share = judge.right(tester, task, options.count, options.seed)
        found[task] = share, made
    return found


def distance(ours: list, theirs: list) -> str:
    if isinstance(ours[0], str):
        return f"{sum(a != b for a, b in zip(ours, theirs)) / len(ours):.0%}"
    return f"{sum(numpy.mean((a.astype(float) - b) ** 2) for a, b in zip(ours, theirs)) ** 0.5 / len(ours) ** 0.5:.1f}"


def main() -> None:
    options = arguments()
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = True, True
    torch.set_num_threads(1)
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    from comfyui_lance.dev.host import number_formats
    from comfyui_lance.lance_model import loading, nano
    from comfyui_lance.scripts import convert
    from comfyui_lance.training import judge

    print("| file | GB |", " | ".join(judge.TASKS), "|")
    print("| --- | ---: |" + " ---: |" * len(judge.TASKS))
    started = time.monotonic()
    exact = None
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        demonstration = nano.checkpoint(Path(folder))
        for name, how in FILES.items():
            if name != FLOAT32 and not any(word in name for word in options.files.split(",")):
                continue
            path, card = demonstration, contextlib.nullcontext()
            if name != FLOAT32:
                path, card = Path(folder) / "made.safetensors", number_formats.FORMATS["bf16"].chosen()
                path.unlink(missing_ok=True)
                convert.convert(demonstration, path, how[0], None, None, lambda *_: None, keep=how[1:])
            with card:
                found = judged(loading.load(path), options)
            exact = exact or found
            cells = [f"{share:.0%}, {distance(made, exact[task][1])}" for task, (share, made) in found.items()]
            print(f"| {name} | {gigabytes(convert, how):.1f} |", " | ".join(cells), "|", flush=True)
    print(f"\n{options.count} prompts a task, {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
