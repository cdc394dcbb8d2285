"""All that only a card can settle, in one command, on random weights of Lance's own size (made once, 14 GB):

    bash scripts/benchmark.sh card [--only servers,attention] [--out FILE.md]

- servers: workflows through ComfyUI's own main.py, with dynamic VRAM and without, with less memory, without streams
- attention: flash beside cuDNN at Lance's sizes
- rotary: ComfyUI's fused normalisation and rotation beside PyTorch's
- waits: where a sampling step waits for the card (at most one line of ours a step)
- compile: graphs and recompilations under TorchCompileModel
- engines: the plugin beside a naive version and, if LANCE_REF names a checkout, the reference; text in bf16 and fp8
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from comfy.cli_args import args as comfy_args
from run import REPOSITORY

WORKFLOWS = ("text_to_image", "image_edit", "text_to_video", "video_question")
# Queries × keys of a picture, an edit, a clip and a clip's edit; 16 query heads over 2 key heads of 128.
ATTENTION = ((2306, 2461), (2306, 5300), (20672, 20827), (25442, 65386))
TINY_ATTENTION = ((50, 205),)
GB = 1024**3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="sections, by commas; default: all")
    parser.add_argument("--size", choices=("tiny", "300m", "3b"), help="default: 3b on a card, tiny on a CPU")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "lance-benchmarks", help="for weights")
    parser.add_argument("--out", type=Path, help="a file for what is printed")
    options = parser.parse_args()
    options.card = torch.cuda.is_available()
    options.size = options.size or ("3b" if options.card else "tiny")
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = not options.card, True
    chosen = options.only.split(",") if options.only else list(SECTIONS)
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    report = f"# {torch.cuda.get_device_name() if options.card else 'CPU'}, torch {torch.__version__}, {options.size}\n"
    for name in chosen:
        report += f"\n## {name}\n\n"
        for line in SECTIONS[name](options):
            report += line + "\n"
            print(line, flush=True)
        if options.out is not None:
            options.out.write_text(report)


def layout(options) -> Path:
    """Random weights in the official layout; the model for clips is the one for pictures."""
    import weights

    folder = options.cache / f"{options.size}-bf16"
    weights.write(folder, options.size, torch.bfloat16)
    if not (folder / "Lance_3B_Video").exists():
        (folder / "Lance_3B_Video").symlink_to("Lance_3B")
    return folder


def servers(options):
    from comfyui_lance.dev.host import workflows
    from comfyui_lance.dev.host.server import ComfyServer

    settings = {"as it starts": (), "--disable-dynamic-vram": ("--disable-dynamic-vram",)}
    settings |= {"--disable-async-offload": ("--disable-async-offload",)}
    if options.card:
        total = torch.cuda.get_device_properties(0).total_memory / GB
        for left in (12, 8, 6):
            reserve = f"{max(0.0, total - left):.1f}"
            settings |= {f"{left} GB left": ("--reserve-vram", reserve)}
            settings |= {f"{left} GB left, no prefetch": ("--reserve-vram", reserve, "--disable-async-offload")}
    names = WORKFLOWS if options.card else WORKFLOWS[:1]
    yield f"| main.py | dynamic VRAM | {' | '.join(f'{name} (again), s' for name in names)} |"
    yield "| --- | --- |" + " ---: |" * len(names)
    for name, arguments in settings.items():
        times = []
        with ComfyServer(layout(options), threads=None, arguments=arguments) as server:
            for workflow in names:
                prompt = workflows.load(workflow)
                times.append(f"{timed(server, prompt, 1):.1f} ({timed(server, prompt, 2):.1f})")
            dynamic = "yes" if "DynamicVRAM support detected" in server.log.read_text() else "no"
        yield f"| {name} | {dynamic} | {' | '.join(times)} |"


def timed(server, prompt: dict, seed: int) -> float:
    """Seconds of a run, with a seed of its own so that the server has something to do."""
    for node in prompt.values():
        for name in {"seed", "noise_seed"} & node["inputs"].keys():
            node["inputs"][name] = seed
        if "max_length" in node["inputs"]:
            node["inputs"]["max_length"] = 64 + seed
    start = time.monotonic()
    server.wait(server.queue(prompt))
    return time.monotonic() - start


def seconds(call: Callable, options, rounds: int = 10) -> float:
    """Of one call, the fastest of `rounds`."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        if options.card:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def attention(options):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device, attend = "cuda" if options.card else "cpu", torch.nn.functional.scaled_dot_product_attention
    backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION if options.card else SDPBackend.MATH)
    yield f"| queries × keys | {' | '.join(f'{backend.name}, ms' for backend in backends)} |"
    yield "| --- | ---: | ---: |"
    for queries, keys in ATTENTION if options.card else TINY_ATTENTION:
        q, k, v = (
            torch.randn(1, n, heads, 128, device=device, dtype=torch.bfloat16).transpose(1, 2)
            for n, heads in ((queries, 16), (keys, 2), (keys, 2))
        )
        times = []
        for backend in backends:
            with sdpa_kernel(backend):
                times.append(1e3 * seconds(lambda q=q, k=k, v=v: attend(q, k, v, enable_gqa=True), options))
        yield f"| {queries} × {keys} | {' | '.join(f'{t:.2f}' for t in times)} |"


def rotary(options):
    from comfy.quant_ops import ck
    from comfyui_lance.lance_model.layer import RMS_EPS, rotate

    device, tokens = ("cuda", 20672) if options.card else ("cpu", 50)
    x = torch.randn(1, tokens, 16, 128, device=device, dtype=torch.bfloat16)
    scale = torch.ones(128, device=device, dtype=torch.bfloat16)
    frequencies = torch.randn(1, tokens, 1, 64, 2, 2, device=device)
    fused = seconds(lambda: ck.rms_rope_split_half1(x, frequencies, scale, RMS_EPS), options)
    apart = seconds(lambda: rotate(torch.nn.functional.rms_norm(x, (128,), scale, RMS_EPS), frequencies), options)
    yield f"{tokens} tokens of 16 heads: ComfyUI's operation {1e3 * fused:.2f} ms, PyTorch's {1e3 * apart:.2f} ms"
    yield f"backends: {', '.join(name for name, found in ck.list_backends().items() if found.get('available'))}"


def waits(options):
    import comfy.sample
    import comfy.samplers
    from comfyui_lance.lance_model import language, loading

    model, clip, _ = loading.load(layout(options) / "Lance_3B" / "model.safetensors")
    pair = language.encode_pair(clip, "A red fox sleeps under a birch tree in the snow.")
    for side in (512, 768) if options.card else (64,):
        noise = torch.randn(1, 48, 1, side // 16, side // 16)
        sampler, steps = comfy.samplers.sampler_object("euler"), 10

        def sample(count: int, noise=noise, sampler=sampler) -> None:
            sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", count)
            empty = torch.zeros_like(noise)
            comfy.sample.sample_custom(model, noise, 4.0, sampler, sigmas, *pair, empty, disable_pbar=True)

        sample(2)
        long, short = (seconds(lambda n=n: sample(n), options, 3) for n in (steps + 2, 2))
        yield f"{side} × {side}: {1e3 * (long - short) / steps:.1f} ms a step"
        if options.card:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                sample(steps)
                torch.cuda.set_sync_debug_mode("default")
            places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
            yield "; ".join(f"{place} {count} times" for place, count in places.most_common(8)) or "no waits"


def command(options, *arguments: str, **environment: str):
    """What benchmarks/run.py prints."""
    run = [sys.executable, REPOSITORY / "benchmarks" / "run.py", "--size", options.size, "--cache", options.cache]
    run += ["--device", "cuda" if options.card else "cpu", *arguments]
    done = subprocess.run(
        run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
    )
    yield from done.stdout.splitlines()


def compile(options):
    words = ("Recompiling", "graph break", "recompile_limit")
    lines = list(command(options, "--compile", "--tasks", "t2i", TORCH_LOGS="recompiles,graph_breaks"))
    yield from (line for line in lines if line.startswith("|"))
    yield ", ".join(f"{word}: {sum(word.lower() in line.lower() for line in lines)}" for word in words)


def engines(options):
    yield from command(options)
    for dtype in ("bf16", "fp8"):
        yield from command(options, "--tasks", "text", "--dtype", dtype)


SECTIONS = {
    "servers": servers,
    "attention": attention,
    "rotary": rotary,
    "waits": waits,
    "compile": compile,
    "engines": engines,
}

if __name__ == "__main__":
    main()
