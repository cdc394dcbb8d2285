"""Trains LoRAs for the demonstration model in the shipped workflows, and judges it without and with them.

    bash scripts/benchmark.sh lora [--count 50] [--old 20] [--keep DIR]

What they teach is in training/lessons.py: prompts of the examples' kind that are not among them, and after them what
the model knew before.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from comfy.cli_args import args as comfy_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="prompts for what was taught")
    parser.add_argument("--old", type=int, default=20, help="prompts for each of the old tasks")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and the noise")
    parser.add_argument("--lessons", default="", help="those with one of these words, by commas")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the LoRAs and the pictures here")
    options = parser.parse_args()
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = not torch.cuda.is_available(), True
    import comfy.sd
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    from comfyui_lance.dev.host import lora
    from comfyui_lance.lance_model import loading, nano
    from comfyui_lance.training import judge, lessons

    chosen = [name for name in lessons.LESSONS if any(word in name for word in options.lessons.split(","))]
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model, clip, vae = loading.load(nano.checkpoint(Path(temporary)))
        testers = {"without": judge.Judge(model, clip, vae)}
        for lesson in chosen:
            trained = lora.train(lesson, folder)
            weights = comfy.utils.load_torch_file(str(trained.file))
            taught = comfy.sd.load_lora_for_models(model, clip, weights, 1.0, 0.0)[0]
            testers[lesson] = judge.Judge(taught, clip, vae)
            print(f"{lesson}: {trained.seconds:.0f} s, {trained.file.stat().st_size / 1e6:.1f} MB", flush=True)
        print("\n| |", " | ".join(testers), "|\n| --- |" + " ---: |" * len(testers))
        for lesson in chosen:
            shares = [lessons.right(tester, lesson, options.count, options.seed) for tester in testers.values()]
            row(f"{lesson}, new prompts", shares)
        for task in judge.TASKS:
            row(task, [judge.right(tester, task, options.old, options.seed) for tester in testers.values()])


def row(title: str, shares: list[float]) -> None:
    print(f"| {title} |", " | ".join(f"{share:.0%}" for share in shares), "|", flush=True)


if __name__ == "__main__":
    main()
