"""Times the plugin, a naive version of it and the reference on the same random weights, in turns: see README.md.

    python benchmarks/run.py [--size tiny|300m|3b] [--device auto|cpu|cuda] [--tasks t2i,image_edit,t2v,video_edit,text]

ComfyUI's folder comes from PYTHONPATH. The reference runs if LANCE_REF names a checkout of it; LANCE_REF_PYTHON is an
interpreter that has transformers 4.49.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from comfy.cli_args import args as comfy_args

REPOSITORY = Path(__file__).resolve().parent.parent
TASKS = ("t2i", "image_edit", "t2v", "video_edit", "text")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "300m", "3b"), help="default: 3b on a GPU, 300m on a CPU")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tasks", default=",".join(TASKS), help="default: all")
    parser.add_argument("--steps", type=int, help="default: 30 on a GPU, 4 on a CPU")
    parser.add_argument("--cfg", type=float, default=4.0, help="1 leaves the unconditional branch out (default: 4)")
    parser.add_argument("--dtype", choices=("bf16", "fp32", "fp8"), help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--compile", action="store_true", help="also run the plugin under core's TorchCompileModel")
    parser.add_argument("--rounds", type=int, default=2, help="of which the fastest counts (default: 2)")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "lance-benchmarks", help="for weights")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    cuda = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    options.device = "cuda" if cuda else "cpu"
    options.size = options.size or ("3b" if cuda else "300m")
    options.steps = options.steps or (30 if cuda else 4)
    options.dtype = options.dtype or ("bf16" if cuda else "fp32")
    options.tasks = options.tasks.split(",")
    if unknown := set(options.tasks) - set(TASKS):
        parser.error(f"no such task: {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    return options


def main() -> None:
    options = arguments()
    # ComfyUI looks at these, and at the device, when its modules are imported.
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = options.device == "cpu", True
    import measure

    measure.run(options)


if __name__ == "__main__":
    main()
