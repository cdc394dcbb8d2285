"""Runs every shipped workflow that does not train through ComfyUI's HTTP API; see scripts/demo.sh."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

import av

from .host import workflows
from .host.server import ComfyServer


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
    parser.add_argument("--weights", type=Path, help="Lance itself: a folder in the official layout")
    parser.add_argument("--serve", action="store_true", help="afterwards, keep the page open for your browser")
    arguments = parser.parse_args()
    if arguments.weights is not None and not arguments.weights.is_dir():
        parser.error(f"--weights: there is no folder {arguments.weights}")
    arguments.out.mkdir(parents=True, exist_ok=True)

    if arguments.weights is None:
        print("The demonstration model makes these: coloured shapes at 64x64. --weights takes Lance itself.")
    print("Starting ComfyUI")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave the server's `with` also when terminated
    failed, start = [], time.monotonic()
    with ComfyServer(arguments.weights, threads=None if arguments.weights else 1) as server:
        for name in workflows.names():
            prompt = workflows.load(name)
            if workflows.of_type(prompt, "TrainLoraNode"):
                print(f"{name}: left out, as training takes minutes; run it in the page")
                continue
            try:
                run(server, name, prompt, arguments.out)
            except (RuntimeError, OSError) as error:
                failed.append(name)
                print(f"{name} FAILED: {error}", file=sys.stderr)
        print(f"All in {time.monotonic() - start:.0f} s, in {arguments.out}/")
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
