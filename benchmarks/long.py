"""Long clips of the demonstration model: in context windows, in parts and continued, beside clips of its own length.

    bash scripts/benchmark.sh long [--count 20] [--seed 0] [--strips FILE.png]

It was trained on clips of 9 frames; here they are 25. The world's own rules judge them from pixels: in each frame the
background and the one thing's colour and shape; in each 9 frames its motion (an edit's has to be the source's); and how
far it jumps from one frame to the next, in pixels of 64.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from comfy.cli_args import args as comfy_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="clips of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--ways", default="", help="those with one of these words, by commas")
    parser.add_argument("--strips", type=Path, metavar="FILE", help="also draw the first long clip that each way made")
    options = parser.parse_args()
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = not torch.cuda.is_available(), True
    torch.set_num_threads(1)  # products are small; a shared machine's threads wait for each other
    import ways

    ways.run(options)


if __name__ == "__main__":
    main()
