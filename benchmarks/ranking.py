"""Lance Rank on the demonstration model: four quick tries of each prompt, and how often the best of them is right.

    bash scripts/benchmark.sh ranking [--count 200] [--seed 0]

Right is what shows all that was asked for. Then, for Lance's own sizes, what a look costs beside a sampling step.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from comfy.cli_args import args as comfy_args

TRIES = 4
PROMPT_TOKENS = 128  # of a prompt as Lance wants it


class Tries(NamedTuple):
    """Pictures, or a clip's frames, of one prompt; whether each is right; ways to rank them → LanceRank's `task`."""

    images: torch.Tensor
    right: list[bool]
    ways: dict[str, dict]


def captioned(prompt: str) -> dict:
    return {"task": "caption", "prompt": prompt, "style": "accurate"}


class Trial:
    """The demonstration model at few steps."""

    def __init__(self, folder: Path):
        from comfyui_lance.lance_model import loading, nano
        from comfyui_lance.nodes.rank import LanceRank
        from comfyui_lance.training import judge, world

        self.judging, self.world = judge, world
        self.judge = judge.Judge(*loading.load(nano.checkpoint(folder)))
        self.node = LanceRank.PREPARE_CLASS_CLONE({"hidden_inputs": {}})

    def best(self, tries: Tries, task: dict) -> int:
        from comfyui_lance.nodes.resolution import KEEP

        frames = len(tries.images) // TRIES
        settings = {"image_resolution": KEEP, "video_resolution": KEEP}
        return self.node.execute(self.judge.model, self.judge.clip, tries.images, task, frames, **settings).result[3]

    def made(self, encoded, latent: dict, seed: int, steps: int) -> torch.Tensor:
        self.judge.steps = steps
        latent = {"samples": latent["samples"].expand(TRIES, -1, -1, -1, -1)}
        return torch.from_numpy(self.judge.sample(*encoded, latent, seed))

    def shows(self, picture: torch.Tensor, scene) -> bool:
        background, seen = self.world.detect(picture.numpy())
        return background == scene.background and self.world.same_things(seen, scene)

    def tries(self, images: torch.Tensor, right: list[bool], ways: dict[str, dict]) -> Tries:
        return Tries(images.float() / 255, right, ways)

    # Each of these makes tries of one prompt.

    def two_objects(self, rng: random.Random, seed: int, steps: int) -> Tries:
        scene = self.world.two(rng)
        prompt = self.world.describe(scene)
        latent = self.judging.EmptyLanceLatent.execute(self.judging.SIZE, 1, 1).result[0]
        encoded = self.judging.LanceEncode.execute(self.judge.clip, "image", prompt).result
        made = self.made(encoded, latent, seed, steps)
        first = scene.things[0]
        question = {"question": f"What color is the {first.shape}?", "answer": first.color, "other_answer": ""}
        ways = {
            "caption": captioned(prompt),
            "question about one of them": {"task": "question"} | question,
        }
        return self.tries(made, [self.shows(picture, scene) for picture in made], ways)

    def edits(self, rng: random.Random, seed: int, steps: int) -> Tries:
        edit, judge = self.world.an_edit(rng), self.judge
        source = self.judging.image(edit.source)
        encode = self.judging.LanceEncodeEdit.execute
        *encoded, latent = (
            out[0] for out in encode(judge.clip, judge.vae, source, edit.instruction, "keep size").result
        )
        made = self.made(encoded, latent, seed, steps)
        ways = {
            "caption: the result's description": captioned(self.world.describe(edit.target)),
            "caption: the instruction": captioned(edit.instruction),
        }
        return self.tries(made, [self.shows(picture, edit.target) for picture in made], ways)

    def clips(self, rng: random.Random, seed: int, steps: int) -> Tries:
        clip = self.world.a_clip(rng)
        latent = self.judging.EmptyLanceLatent.execute(self.judging.SIZE, self.world.FRAMES, 1).result[0]
        encoded = self.judging.LanceEncode.execute(self.judge.clip, "video", clip.describe()).result
        made = self.made(encoded, latent, seed, steps)
        right = []
        for frames in made.split(self.world.FRAMES):
            background, seen = self.world.detect(frames[0].numpy())
            alike = background == clip.first.background and self.world.same_things(seen, clip.first)
            right.append(alike and self.world.detect_motion(frames.numpy()) == clip.motion)
        return self.tries(made, right, {"caption": captioned(clip.describe())})


def shares(trial: Trial, make: Callable, count: int, seed: int, steps: int) -> dict[str, float]:
    """Share of right results: of single tries, of the best by each way, and of prompts with a right one at all."""
    rng, found = random.Random(f"{make.__name__} {seed}"), Counter()
    for i in range(count):
        tries = make(rng, 1000 * seed + i, steps)
        found["one try"] += sum(tries.right) / TRIES
        for way, task in tries.ways.items():
            found[f"best of {TRIES} by {way}"] += tries.right[trial.best(tries, task)]
        found["a right one was there"] += any(tries.right)
    return {way: share / count for way, share in found.items()}


def costs() -> None:
    """Tokens through the decoder, of a look at one picture or clip and of a step that makes one."""
    import roofline
    import weights
    from comfyui_lance.lance_model import language, media, tasks
    from comfyui_lance.lance_model.resolution import PRESETS

    dims, tokenizer = weights.DIMS["3b"], language.LanceTokenizer()
    matrices = roofline.expert(dims)
    patch = 32 * (4 * 1280**2 + 3 * 1280 * 3420) / matrices  # Qwen2.5-VL's vision encoder, and its merger of four
    merged = (5120**2 + 5120 * dims["hidden"]) / matrices
    head = roofline.HEAD_ROWS * dims["hidden"] / matrices
    print("\n| of one | tokens of the look | patches | together, in tokens | a step, both branches | share of a step |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, modality, preset, (width, height), frames in (
        ("picture 768×768", "image", "image 768", (768, 768), 1),
        ("clip 848×480×49", "video", "video 480p", (848, 480), 49),
        ("clip 848×480×121", "video", "video 480p", (848, 480), 121),
    ):
        across, down = (side // media.PATCH for side in PRESETS[preset].fit(width, height).vision_size)
        seen = len(media.frame_indices(frames, media.FPS))
        medium = media.Medium(None, ((seen + 1) // 2, down, across))
        system = tasks.CAPTION["accurate"].format(m=modality)
        request = language.Request("", system, modality, (medium,))
        tokens = sum(len(segment) for segment in tokenizer.segments(request, system)[0]) + PROMPT_TOKENS
        patches = medium.grid[0] * down * across
        look = tokens + patches * (patch + merged / 4) + PROMPT_TOKENS * head
        step = 2 * (((frames - 1) // 4 + 1) * (width // 16) * (height // 16) + 2)
        print(f"| {name} | {tokens:,} | {patches:,} | {look:,.0f} | {step:,} | {look / step:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="prompts; of edits half as many, of clips a quarter")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = not torch.cuda.is_available(), True
    torch.set_num_threads(1)
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        trial = Trial(Path(folder))
        print("| what | right |\n| --- | ---: |")
        for what, make, count, steps in (
            ("two-object scenes", trial.two_objects, options.count, 6),
            ("edits", trial.edits, options.count // 2, 4),
            ("clips", trial.clips, options.count // 4, 6),
        ):
            print(f"| **{what}, {steps} steps, {count} prompts** | |")
            for way, share in shares(trial, make, count, options.seed, steps).items():
                print(f"| {way} | {share:.1%} |", flush=True)
        costs()
    print(f"\nseed {options.seed}; {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
