"""What each setting of Lance Guidance does to the demonstration model's pictures, edits and subjects.

    bash scripts/benchmark.sh guidance [--count 40] [--steps 12] [--seed 0]

The same prompts and noise with each setting: passes a step that is guided, the share that is as asked, how far (root
mean square, in levels of 255) the pictures are from those of the defaults, and edits from the picture that they ask
for.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy
import torch
from comfy.cli_args import args as comfy_args

DEFAULT = "the defaults"
SETTINGS = {
    DEFAULT: {},
    "no CFG (start 1)": {"start": 1.0},
    "as published": {"unconditional": "published"},
    "minimum 0.9": {"renormalisation_minimum": 0.9},
    "minimum 1, or none": {"renormalisation": "none"},
    "image guidance 0": {"image_guidance": 0.0},
    "image guidance 2": {"image_guidance": 2.0},
    "image guidance 4": {"image_guidance": 4.0},
}
DUAL = "Dual CFG Guider, 2"
TASKS = {"pictures": "text to image", "edits": "image edit", "subjects": "subject"}  # beginnings of the judge's names


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="prompts a task")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", default="", help="those with one of these words, by commas; default: all")
    return parser.parse_args()


def rms(pictures: list[numpy.ndarray], others: list[numpy.ndarray]) -> float:
    squares = [numpy.square(one.astype(float) - other).mean() for one, other in zip(pictures, others)]
    return float(numpy.sqrt(numpy.mean(squares)))


def dual_sample(tester, positive, negative, latent: dict, seed: int) -> numpy.ndarray:
    """As the judge samples, with core's guider and, for the branch without pictures, the prompt node's negative."""
    import comfy.sample
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import DualCFGGuider
    from comfyui_lance.nodes.encode import LanceEncode

    import nodes

    bare = LanceEncode.execute(tester.clip, "image", "").result[1]
    guider = DualCFGGuider.execute(tester.model, positive, negative, bare, tester.cfg, 2.0, "regular").result[0]
    start, euler = latent["samples"], comfy.samplers.sampler_object("euler")
    sigmas = comfy.samplers.KSampler(tester.model, tester.steps, "cpu", "euler", "simple").sigmas
    noise = comfy.sample.prepare_noise(start, seed)
    made = guider.sample(noise, start, euler, sigmas, disable_pbar=True, seed=seed)
    (images,) = nodes.VAEDecode().decode(tester.vae, {"samples": made})
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def judged(tester, task: str, options: argparse.Namespace, dual: bool) -> tuple[float, list[numpy.ndarray]]:
    """The share of right results, and the results."""
    from comfyui_lance.training import judge

    pictures, sample = [], partial(dual_sample, tester) if dual else tester.sample

    def keeping(*args) -> numpy.ndarray:
        pictures.append(sample(*args))
        return pictures[-1]

    tester.sample = keeping
    return judge.right(tester, task, options.count, options.seed), pictures


def main() -> None:
    options = arguments()
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = not torch.cuda.is_available(), True
    torch.set_num_threads(1)
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    from comfyui_lance.lance_model import guidance, loading, nano
    from comfyui_lance.nodes.guidance import LanceGuidance
    from comfyui_lance.training import judge, world

    names = {short: next(name for name in judge.TASKS if name.startswith(begin)) for short, begin in TASKS.items()}
    rng = random.Random(f"{names['edits']} {options.seed}")
    wanted = [numpy.asarray(world.render(world.an_edit(rng).target))[None] for _ in range(options.count)]
    print("| setting | passes a guided step |", end=" ")
    print(" | ".join(f"{task} | levels away" for task in TASKS), "| edits: levels from asked |")
    print("| --- | ---: |" + " ---: | ---: |" * len(TASKS) + " ---: |")
    started, usual = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model, clip, vae = loading.load(nano.checkpoint(Path(folder)))
        for setting, values in [*SETTINGS.items(), (DUAL, {})]:
            if not (setting == DEFAULT or any(word in setting for word in options.settings.split(","))):
                continue
            fixed = dict(zip(("start", "end"), guidance.INTERVAL)) | {"renormalisation": "global"}
            changed = LanceGuidance.execute(model, **(fixed | values)).result[0]
            third = "image_guidance" in values or setting == DUAL
            cells = [f"{setting} | {3 if third else 1 if 'start' in values else 2}"]
            for task, name in names.items():
                if third and task == "pictures":
                    cells.append(" | ")
                    continue
                tester = judge.Judge(changed, clip, vae, options.steps, options.cfg)
                share, pictures = judged(tester, name, options, setting == DUAL)
                cells.append(f"{share:.0%} | {rms(pictures, usual.setdefault(task, pictures)):.1f}")
                if task == "edits":
                    asked = f"{rms(pictures, wanted):.1f}"
            print("|", " | ".join([*cells, asked]), "|", flush=True)
    print(
        f"\n{options.count} prompts a task, {options.steps} steps, CFG {options.cfg:g}, seed {options.seed}; "
        f"{time.monotonic() - started:.0f} s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
