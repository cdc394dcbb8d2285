"""How few passes the demonstration model needs: samplers, schedulers and steps, with EasyCache and CFG intervals.

    bash scripts/benchmark.sh fast [--tasks pictures] [--count 12] [--steps 4,6,8] [--samplers euler,dpmpp_2m]
        [--schedulers simple,kl_optimal] [--starts 0.4] [--caches 0] [--out TABLE.csv]

Each combination is a row of the table: prompts that came out right by the world's own rules, passes of the transformer
for each, and how far (root mean square, in levels of 255) the results are from those of 200 steps of euler. Rows that
the table has already are not made again, so a run may be interrupted and goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from pathlib import Path

import torch
from comfy.cli_args import args as comfy_args

CACHE = Path.home() / ".cache" / "lance-benchmarks"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="pictures", help="of pictures, edits, clips, by commas (default: pictures)")
    parser.add_argument("--count", type=int, default=12, help="prompts a task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", default="4,6,8,12,20,30")
    parser.add_argument("--samplers", default="", help="by commas; default: all")
    parser.add_argument("--schedulers", default="", help="by commas; default: all")
    parser.add_argument("--starts", default="0.4", help="of the interval in which CFG acts; 1 is no CFG")
    parser.add_argument("--caches", default="0", help="EasyCache's thresholds; 0 is no EasyCache")
    parser.add_argument("--batch", type=int, default=20, help="prompts that are sampled together")
    parser.add_argument("--out", type=Path, default=CACHE / "fast.csv", help="the table, which grows")
    return parser.parse_args()


def combinations(options: argparse.Namespace) -> list:
    """The settings, fewest steps first. Samplers named for a GPU compute the same with noise from there."""
    import comfy.samplers
    from trials import Setting

    samplers = [name for name in comfy.samplers.SAMPLER_NAMES if not name.endswith("_gpu")]
    return [
        Setting(sampler, scheduler, int(steps), float(start), float(cache))
        for steps, scheduler, sampler, start, cache in itertools.product(
            options.steps.split(","),
            options.schedulers.split(",") if options.schedulers else comfy.samplers.SCHEDULER_NAMES,
            options.samplers.split(",") if options.samplers else samplers,
            options.starts.split(","),
            options.caches.split(","),
        )
    ]


def main() -> None:
    options = arguments()
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = not torch.cuda.is_available(), True
    torch.set_num_threads(1)  # products are small; a shared machine's threads wait for each other
    import trials

    columns = ["task", "prompts", "seed", *trials.Setting._fields, *trials.Result._fields]
    known: set[tuple] = set()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.out.exists():
        with options.out.open(newline="") as rows:
            known = {tuple(row.values())[: -len(trials.Result._fields)] for row in csv.DictReader(rows)}
    else:
        options.out.write_text(",".join(columns) + "\n")
    with trials.demonstration() as lance:
        for task in options.tasks.split(","):
            wanted = [(task, options.count, options.seed, *setting) for setting in combinations(options)]
            wanted = [key for key in wanted if tuple(map(str, key)) not in known]
            if not wanted:
                continue
            trial = trials.Trials(lance, task, options.count, options.seed, options.batch, options.out.parent)
            for key in wanted:
                started = time.monotonic()
                right, passes, levels = trial.run(trials.Setting(*key[3:]))
                row = [*key, right, f"{passes:.4g}", f"{levels:.3g}"]
                with options.out.open("a", newline="") as rows:
                    csv.writer(rows, lineterminator="\n").writerow(row)
                print(*row, f"{time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
