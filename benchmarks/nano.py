"""Judges the demonstration model over many prompts a task, as it is and with parts of Lance taken away.

    source scripts/host.sh
    PYTHONPATH="$COMFYUI_PATH" "$LANCE_PYTHON" benchmarks/nano.py [--count 100] [--ablations 40]

`--model` names another packed model, such as one in training.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path

import torch
from comfy.cli_args import args as comfy_args
from run import import_plugin

EXPERT = "_moe_gen"


def experts_joined(model, kept: str):
    """The MODEL with one expert's weights in both: `kept` is understanding or generation."""
    model = model.clone()
    model.model = copy.deepcopy(model.model)
    weights = model.model.diffusion_model.state_dict()
    for name in [name for name in weights if EXPERT in name]:
        other = name.replace(EXPERT, "")
        source, target = (other, name) if kept == "understanding" else (name, other)
        weights[target] = weights[source].clone()
    model.model.diffusion_model.load_state_dict(weights)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="prompts a task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ablations",
        type=int,
        default=0,
        metavar="COUNT",
        help="also without MaPE, and with one expert in both places, over that many prompts a task",
    )
    parser.add_argument("--tasks", default="", help="those with one of these words, by commas")
    parser.add_argument("--model", type=Path, help="a packed model; default: the one that comes with the plugin")
    options = parser.parse_args()
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = not torch.cuda.is_available(), True
    import_plugin()
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    import judge
    from comfyui_lance.lance_model import loading, nano, positions

    if options.model is not None:
        nano.PACKED = options.model
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model, clip, vae = loading.load(nano.checkpoint(Path(folder)))
        variants = {"as it is": model}
        if options.ablations:
            variants |= {"without MaPE": model}
            variants |= {
                f"{kept} expert alone": experts_joined(model, kept) for kept in ("understanding", "generation")
            }
        print("| task | asked |", " | ".join(variants), "|")
        print("| --- | ---: |" + " ---: |" * len(variants))
        mape = positions._mape
        started = time.monotonic()
        for task, (_, asked) in judge.TASKS.items():
            if not any(word in task for word in options.tasks.split(",")):
                continue
            shares = []
            for name, variant in variants.items():
                positions._mape = (lambda sequence, plain: plain) if name == "without MaPE" else mape
                count = options.count if name == "as it is" else options.ablations
                shares.append(judge.right(judge.Judge(variant, clip, vae), task, count, options.seed))
            print(f"| {task} | {asked:.0%} |", " | ".join(f"{share:.0%}" for share in shares), "|", flush=True)
        print(
            f"\n{options.count} prompts a task, seed {options.seed}; {time.monotonic() - started:.0f} s",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
