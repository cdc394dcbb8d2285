"""Runs every shipped workflow through ComfyUI's HTTP API; see demo.sh."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

import av
import torch
from comfy_server import ComfyServer

import workflows


def describe(path: Path) -> str:
    """Size of a picture, and frames of a clip; nothing for other files."""
    if path.suffix == ".txt":
        return path.read_text().strip()[:60]
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        size = f"{stream.width}x{stream.height}"
        return size if stream.frames < 2 else f"{size}, {stream.frames} frames at {float(stream.average_rate):g} fps"


def run(server: ComfyServer, name: str, prompt: dict, out: Path) -> None:
    """Runs one workflow and copies what it made."""
    start = time.monotonic()
    entry = server.wait(server.queue(prompt))
    print(f"{name} ({time.monotonic() - start:.0f} s)")
    for i, source in enumerate(server.outputs(entry)):
        target = out / f"{name}{f'_{i + 1}' if i else ''}{source.suffix}"
        shutil.copyfile(source, target)
        print(f"    {target}  {describe(target)}")
    for text in workflows.texts(entry):
        print(f"    text: {text[:100]!r}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run every shipped workflow and keep what it makes.")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for pictures and clips")
    parser.add_argument("--weights", type=Path, help="a folder in the official layout; default: tiny random weights")
    parser.add_argument("--serve", action="store_true", help="afterwards, keep the page open for your browser")
    arguments = parser.parse_args()
    if arguments.weights is not None and not arguments.weights.is_dir():
        parser.error(f"--weights: there is no folder {arguments.weights}")
    arguments.out.mkdir(parents=True, exist_ok=True)

    if arguments.weights is None:
        print(
            "Demonstration weights: tiny and random, so what they make is coloured noise and babble. --weights takes "
            "real ones."
        )
    small = not torch.cuda.is_available()
    if small:
        print("There is no GPU: pictures, clips and texts are made small.")
    print("Starting ComfyUI")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave the server's `with` also when terminated
    failed = []
    with ComfyServer(arguments.weights, workflows.INPUTS) as server:
        for name in workflows.names():
            prompt = workflows.load(name)
            try:
                run(server, name, workflows.shrunk(prompt, 256, 256, 13, 30) if small else prompt, arguments.out)
            except (RuntimeError, OSError) as error:
                failed.append(name)
                print(f"{name} FAILED: {error}", file=sys.stderr)
        if arguments.serve:
            print(f"ComfyUI is at {server.url}, the workflows are in its templates. Ctrl-C stops it.")
            try:
                server.process.wait()
            except KeyboardInterrupt:
                pass
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
