"""Judges the demonstration model over many prompts a task, as it is and with parts of Lance taken away.

    bash scripts/benchmark.sh nano [--count 100] [--ablations 40]

`--model` names another packed model, such as one in training.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from comfy.cli_args import args as comfy_args

AS_IT_IS, EXPERT = "as it is", "_moe_gen"


@contextmanager
def changed(variant: str, model, positions) -> Iterator[None]:
    """Without MaPE, or with one expert's weights in both places, and then as it was."""
    module, mape = model.model.diffusion_model, positions._mape
    weights = {name: weight.data for name, weight in module.named_parameters()}
    if variant == "without MaPE":
        positions._mape = lambda sequence, plain: plain
    elif variant != AS_IT_IS:
        for name in [name for name in weights if EXPERT in name]:
            pair = [name.replace(EXPERT, ""), name]
            source, target = pair if variant.startswith("understanding") else reversed(pair)
            module.get_parameter(target).data = weights[source]
    try:
        yield
    finally:
        positions._mape = mape
        for name, weight in weights.items():
            module.get_parameter(name).data = weight


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
    torch.set_num_threads(1)  # its operations are so small that threads cost more than they bring
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    from comfyui_lance.lance_model import loading, nano, positions
    from comfyui_lance.training import judge

    if options.model is not None:
        nano.PACKED = options.model
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model, clip, vae = loading.load(nano.checkpoint(Path(folder)))
        variants = [AS_IT_IS, "without MaPE", "understanding expert alone", "generation expert alone"]
        variants = variants if options.ablations else variants[:1]
        tester = judge.Judge(model, clip, vae)
        print("| task | asked |", " | ".join(variants), "|")
        print("| --- | ---: |" + " ---: |" * len(variants))
        started = time.monotonic()
        for task, (_, asked) in judge.TASKS.items():
            if not any(word in task for word in options.tasks.split(",")):
                continue
            shares = []
            for variant in variants:
                count = options.count if variant == AS_IT_IS else options.ablations
                with changed(variant, model, positions):
                    shares.append(judge.right(tester, task, count, options.seed))
            print(f"| {task} | {asked:.0%} |", " | ".join(f"{share:.0%}" for share in shares), "|", flush=True)
        print(
            f"\n{options.count} prompts a task, seed {options.seed}; {time.monotonic() - started:.0f} s",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
