"""Every task in the number formats that ComfyUI chooses on cards: distances from the reference, shares of right ones.

    bash scripts/benchmark.sh formats [--count 50] [--formats bf16,fp8] [--cases t2i]

Distances are ‖ours - its‖ / ‖its‖ over the parity cases, on the tiny seeded checkpoint: of the first velocities, of the
latents after all steps, and of an answer's best logits. Shares are of the demonstration model's prompts.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path

import torch
from comfy.cli_args import args as comfy_args
from run import REPOSITORY


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="prompts a task; 0 leaves the shares out")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--formats", default="", help="those with one of these words, by commas; default: all")
    parser.add_argument("--cases", default="", help="parity cases with one of these words; none leaves them out")
    return parser.parse_args()


def chosen(names, words: str) -> list[str]:
    return [name for name in names if any(word in name for word in words.split(","))]


def main() -> None:
    options = arguments()
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = True, True
    sys.path.append(str(REPOSITORY / "tests"))
    torch.set_num_threads(1)
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    from comfyui_lance.dev.host import number_formats, tiny_checkpoint
    from comfyui_lance.lance_model import loading, nano
    from comfyui_lance.training import judge
    from support import parity_case

    cases = chosen([*parity_case.CASES, *parity_case.ANSWERS], options.cases)
    tasks = list(judge.TASKS) if options.count else []
    print("| format | velocity | latent | logits |", " | ".join(tasks), "|")
    print("| --- | ---: | ---: | ---: |" + " ---: |" * len(tasks))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        folder = Path(folder)
        tiny_checkpoint.write(folder / "tiny")
        tiny, demonstration = folder / "tiny" / "Lance_3B" / "model.safetensors", nano.checkpoint(folder)
        for name in chosen(number_formats.FORMATS, options.formats):
            format = number_formats.FORMATS[name]

            def load(checkpoint: Path, format=format):
                stored = format.write(checkpoint, checkpoint.with_name("stored.safetensors"))
                return loading.load(stored, weight_dtype=format.weight_dtype)

            found: dict[str, list[float]] = {"velocity": [], "latent": [], "logits": []}
            with format.chosen():
                lance = load(tiny) if cases else None
                for case in cases:
                    recorded = parity_case.load_case(REPOSITORY / "tests" / "parity", case)
                    for kind, distance in parity_case.distances(recorded, case, lance).items():
                        found[kind].append(distance)
                tester = judge.Judge(*load(demonstration), steps=options.steps)
                shares = [f"{judge.right(tester, task, options.count):.0%}" for task in tasks]
            figures = [f"{max(distances):.2g}" if distances else "–" for distances in found.values()]
            print(f"| {name} |", " | ".join([*figures, *shares]), "|", flush=True)
            del lance, tester
            gc.collect()
    print(f"\n{options.count} prompts a task; {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
