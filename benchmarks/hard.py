"""Judges the demonstration model on what is hard in its world, by category.

    bash scripts/benchmark.sh hard [--count 20] [--steps 12] [--categories counting,letters]

`--model` names another packed model, such as one in training; `--words` lists the tokens that the vocabulary of the
model lacks, and makes nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from comfy.cli_args import args as comfy_args


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="prompts a category")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--categories", default="", help="by commas; default: all")
    parser.add_argument("--model", type=Path, help="a packed model; default: the one that comes with the plugin")
    parser.add_argument("--words", action="store_true", help="list the tokens that are new to the model")
    return parser.parse_args()


def new_words(packed: Path) -> list[str]:
    """Tokens of the hard world for which a packed model has no row."""
    from comfyui_lance.lance_model import language, nano
    from comfyui_lance.training import hard
    from safetensors import safe_open

    with safe_open(packed, "pt") as file:
        known = set(file.get_tensor(nano.ROWS).tolist())
    tokenizer = language.LanceTokenizer()
    used = {i for text in hard.texts() for i in tokenizer.ids(text)}
    return sorted(tokenizer.decode([i]) for i in used - known)


def main() -> None:
    options = arguments()
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = not torch.cuda.is_available(), True
    torch.set_num_threads(1)  # its operations are so small that threads cost more than they bring
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    from comfyui_lance.lance_model import loading, nano
    from comfyui_lance.training import hard
    from comfyui_lance.training.judge import Judge

    if options.model is not None:
        nano.PACKED = options.model
    if options.words:
        found = new_words(nano.PACKED)
        print(len(found), *(repr(word) for word in found))
        return
    categories = options.categories.split(",") if options.categories else list(hard.CATEGORIES)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        judge = Judge(*loading.load(nano.checkpoint(Path(folder))), steps=options.steps)
        print("| category | right | for example |\n| --- | ---: | --- |")
        for name in categories:
            right = hard.right(judge, name, options.count, options.seed)
            category = hard.CATEGORIES[name]
            example = " → ".join(category.texts(category.make(random.Random(name))))
            print(f"| {name} | {right / options.count:.0%} | {example} |", flush=True)
    print(
        f"\n{options.count} prompts a category, {options.steps} steps, seed {options.seed}; "
        f"{time.monotonic() - started:.0f} s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
