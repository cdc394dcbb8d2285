"""The claims of the Lance paper in small: trains variants of the demonstration model from nothing, on equal terms.

    bash scripts/benchmark.sh claims [--seeds 2] [--steps 1000] [--variants joint,"without MaPE"] [--out DIR]

Tasks: pictures of one thing from text, edits of them, captions and questions. What differs is in
training/claims.py. Each run leaves its measures in a file, so that a benchmark may be interrupted and goes on where it
was, and a table of variants that are there is made at once.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import torch
from comfy.cli_args import args as comfy_args

CACHE = Path.home() / ".cache" / "lance-benchmarks" / "claims"
TASKS = {"t2i": "text to image", "edit": "edit", "caption": "caption", "question": "question"}
ALONE = "each task alone"  # a column of several runs, each of which has tasks of its own


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each variant")
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--variants", default="", help="by commas; default: all")
    parser.add_argument(
        "--out", type=Path, help=f"folder for the runs (default: in {CACHE}, by the steps and the model)"
    )
    return parser.parse_args()


def columns(measured: dict[tuple[str, int], dict]) -> dict[str, dict[tuple[str, str], list[float]]]:
    """Variant → (measure, task) → the values of its seeds."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    for (variant, _), measures in measured.items():
        column = found.setdefault(ALONE if variant.endswith("alone") else variant, {})
        for measure, values in measures.items():
            for task, value in values.items():
                column.setdefault((measure, task), []).append(value)
    return found


def cell(values: list[float], form: str) -> str:
    """Mean and, of several, range."""
    if not values:
        return ""
    mean, *ends = (format(value, form) for value in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} ({'–'.join(ends)})" if len(values) > 1 else mean


def table(measured: dict[tuple[str, int], dict]) -> str:
    found = columns(measured)
    rows = [["", *found], ["---", *["---:"] * len(found)]]
    for measure, title, form in (("losses", "held-out loss", ".3f"), ("right", "right", ".0%")):
        for task, name in TASKS.items():
            cells = [cell(column.get((measure, task), []), form) for column in found.values()]
            rows += [[f"{name}: {title}", *cells]] if any(cells) else []
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    options = arguments()
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = True, True
    torch.set_num_threads(1)  # its operations are so small that threads cost more than they bring
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    from comfyui_lance.lance_model import nano
    from comfyui_lance.training import claims

    model = zlib.crc32(nano.PACKED.read_bytes())  # whose autoencoder and vision encoder all runs begin with
    folder, measured = options.out or CACHE / f"{options.steps} steps, {model:08x}", {}
    chosen = options.variants.split(",") if options.variants else list(claims.VARIANTS)
    for seed in range(options.seeds):
        for variant in chosen:
            print(f"{variant}, seed {seed}", flush=True)
            measured[variant, seed] = claims.run(folder, variant, seed, claims.Scale(options.steps))
    print(table(measured), flush=True)


if __name__ == "__main__":
    main()
