"""What ComfyUI's step caches skip, and what that costs, on the demonstration model.

    bash scripts/benchmark.sh caches [--count 30]

The same prompts and noise with and without each cache: passes of the transformer, time, how far the pictures are from
those of the full run (PSNR), and the share that is as asked.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from pathlib import Path

import numpy
import torch
from comfy.cli_args import args as comfy_args

THRESHOLDS = (0.1, 0.2, 0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30, help="prompts")
    options = parser.parse_args()
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = not torch.cuda.is_available(), True
    import comfy.utils
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

    comfy.utils.PROGRESS_BAR_ENABLED = False
    from comfyui_lance.lance_model import loading, nano
    from comfyui_lance.training import judge, world

    passes = 0

    def count(module, given, out) -> None:
        nonlocal passes
        passes += len(out)

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model, clip, vae = loading.load(nano.checkpoint(Path(folder)))
        model.model.diffusion_model.llm2vae.register_forward_hook(count)
        runs = {"none": model}
        for node in (EasyCacheNode, LazyCacheNode):
            for threshold in THRESHOLDS:
                name = f"{node.__name__.removesuffix('Node')} {threshold}"
                runs[name] = node.execute(model, threshold, 0.15, 0.95, False).result[0]
        print("| cache, threshold | passes a picture | time | PSNR, dB | as asked |")
        print("| --- | ---: | ---: | ---: | ---: |")
        full, full_seconds = [], 0.0
        for name, cached in runs.items():
            tester, rng, right, errors = judge.Judge(cached, clip, vae), random.Random(0), 0, []
            passes, started = 0, time.monotonic()
            for i in range(options.count):
                scene = world.a_scene(rng)
                (picture,) = tester.made(world.describe(scene), i)
                right += judge.names(world.detect(picture)[1]) == judge.names(scene.things)
                if cached is model:
                    full.append(picture.astype(float))
                errors.append(numpy.square(picture - full[i]).mean())
            seconds = time.monotonic() - started
            full_seconds = full_seconds or seconds
            error = numpy.mean(errors)
            psnr = f"{10 * math.log10(255**2 / error):.0f}" if error else ""
            share = right / options.count
            print(
                f"| {name} | {passes / options.count:.0f} | {seconds / full_seconds:.2f}× | {psnr} | {share:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
