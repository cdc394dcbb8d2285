"""Tokens a second of an answer, with the weights held for the answer and module by module, in turns.

    bash scripts/benchmark.sh tokens [--size tiny|300m|3b] [--device auto|cpu|cuda]

Random weights; of the whole path only the experts' layers, which is where the time goes.
"""

from __future__ import annotations

import argparse
import time

import torch
from comfy.cli_args import args as comfy_args

KNOWN, TOKENS, ROUNDS = 200, 20, 3
FORMATS = {
    "float32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp8, computed in bf16": (torch.float8_e4m3fn, torch.bfloat16),
}


def rate(read, token, frequencies, cache, device: torch.device) -> float:
    """Tokens a second, the most of ROUNDS."""
    best = 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for i in range(TOKENS):
            read(token.clone(), frequencies, cache, KNOWN + i)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, TOKENS / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "300m", "3b"), help="default: 3b on a GPU, 300m on a CPU")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()
    cuda = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    comfy_args.cpu = not cuda
    torch.set_num_threads(1)
    import comfy.ops
    import weights
    from comfyui_lance.lance_model.decoding import Held
    from comfyui_lance.lance_model.transformer import LanceTransformer

    device, dims = torch.device("cuda" if cuda else "cpu"), weights.DIMS[options.size or ("3b" if cuda else "300m")]
    print("| weights | module by module | held | times |\n| --- | ---: | ---: | ---: |")
    for name, (stored, computed) in FORMATS.items():
        model = LanceTransformer(**dims, channels=48, device=device, dtype=computed, operations=comfy.ops.manual_cast)
        model.requires_grad_(False)
        for key, weight in model.named_parameters():
            weight.data.normal_(std=0.02)
            if weight.ndim == 2 and ".layers." in key:
                weight.data = weight.data.to(stored)
        cache = model.cache(KNOWN + TOKENS, device, computed)
        for kept in cache:
            kept.zero_()
        token = torch.randn(1, 1, dims["hidden"], device=device, dtype=computed)
        frequencies = torch.randn(1, 1, 1, dims["head_dim"] // 2, 2, 2, device=device)
        with torch.inference_mode():
            apart = rate(model.read, token, frequencies, cache, device)
            with Held(model, device, computed) as held:
                together = rate(held.read, token, frequencies, cache, device)
        print(f"| {name} | {apart:.1f} | {together:.1f} | {together / apart:.2f} |", flush=True)


if __name__ == "__main__":
    main()
