"""Counts what the 3B model asks of a card: launches, waits and moved bytes, without one. See README.md.

    python benchmarks/counts.py

The weights are files of holes and the card is a pretend one (`dev/host/pretend.py`), so it takes a minute and little
memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy
import torch
from comfy.cli_args import args as comfy_args

SIGMAS = (1.0, 0.9, 0.3, 0.2, 0.0)  # two steps with both branches, two with one
OFTEN = 8  # tokens; an answer looks up as often whether it has ended
TOKENS = 2 * OFTEN + 1


@dataclass(frozen=True)
class Load:
    """What is counted on: sizes (frames, height, width) in pixels of the target and of what the encoder sees."""

    name: str
    target: tuple[int, int, int]
    vision: tuple[int, int, int] | None = None
    offloaded: bool = False  # the weights wait in the computer's memory
    memory: int = 80  # GB of the card


LOADS = (
    Load("picture 768×768", (1, 768, 768)),
    Load("picture 768×768, weights in the computer's memory", (1, 768, 768), offloaded=True),
    Load("picture edit 768×768", (1, 768, 768), (1, 672, 672)),
    Load("clip 848×480×49", (49, 480, 848)),
    Load("video edit 848×480×61", (61, 480, 848), (61, 448, 812)),
    Load("video edit 848×480×61, card of 12 GB", (61, 480, 848), (61, 448, 812), memory=12),
)
PICTURE, CLIP = (1, 672, 672), (69, 616, 616)  # for the vision encoder; the clip of six seconds


def medium(size: tuple[int, int, int], latent: torch.Tensor | None = None):
    """What `media.patches` makes of a picture or clip of that size."""
    from comfyui_lance.lance_model import media
    from comfyui_lance.lance_model.sequence import Label

    frames, height, width = size
    grid = ((frames + 1) // 2, height // 14, width // 14)
    patches = torch.zeros(grid[0] * grid[1] * grid[2], 3 * 2 * 14 * 14)
    return media.Medium(patches, grid, latent, None if latent is None else Label.SOURCE)


def steps(load: Load, path: Path) -> Iterator[tuple[str, object]]:
    """Counts of a sampling step with both branches and with one."""
    import comfy.sample
    import comfy.samplers
    from comfy.model_management import VRAMState
    from comfyui_lance.dev.host import pretend
    from comfyui_lance.lance_model import language, loading

    vram = VRAMState.NO_VRAM if load.offloaded else VRAMState.NORMAL_VRAM
    with pretend.comfyui(vram=vram, memory=load.memory * 2**30, numbers=False) as on:
        model, clip, _ = loading.load(path)
        frames, height, width = load.target
        latent = torch.zeros(1, 48, (frames - 1) // 4 + 1, height // 16, width // 16)
        seen = [medium(load.vision, latent)] if load.vision else []
        pair = language.encode_pair(clip, "A red fox in the snow.", media=seen)
        counts = []
        comfy.sample.sample_custom(
            model,
            torch.zeros_like(latent),
            4.0,
            comfy.samplers.sampler_object("euler"),
            torch.tensor(SIGMAS),
            *pair,
            latent,
            callback=lambda *_: counts.append(on.count()),
            disable_pbar=True,
        )
        each = [now.since(then) for then, now in zip(counts, counts[1:])]
        yield f"{load.name}: step, both branches", each[0]
        yield f"{load.name}: step, one branch", each[-1]


def words(path: Path) -> Iterator[tuple[str, object]]:
    """Counts of the vision encoder for a picture and a clip, and of a token, greedy and drawn."""
    from comfyui_lance.dev.host import pretend
    from comfyui_lance.lance_model import language, loading

    with pretend.comfyui(memory=80 * 2**30, numbers=False) as on:
        model, clip, _ = loading.load(path)
        language.embed_media(clip, [medium((1, 28, 28))])  # loads the weights
        for name, size in (("picture 672×672", PICTURE), ("clip of six seconds, 616×616", CLIP)):
            before = on.count()
            language.embed_media(clip, [medium(size)])
            yield f"vision encoder: {name}", on.count().since(before)
        request = language.Request("What is in the picture?", media=(medium((1, 224, 224)),))
        for name, options in (
            (f"answer: {OFTEN} tokens, greedy", {}),
            (f"answer: {OFTEN} tokens, drawn", {"do_sample": True, "temperature": 0.8}),
        ):
            counts = {}
            language.answer(
                clip,
                model,
                request,
                max_length=TOKENS,
                on_tokens=lambda ids, counts=counts: counts.update({len(ids): on.count()}),
                **options,
            )
            yield name, counts[2 * OFTEN].since(counts[OFTEN])


def measure(folder: Path, loads: tuple[Load, ...] = LOADS) -> Iterator[tuple[str, object]]:
    """(what, its `pretend.Count`) for each row of the table."""
    import weights

    path = weights.write(folder, "3b", torch.bfloat16, weights.FULL_VISION, weights.write_holes)
    # Zeros that nobody reads take no memory; the file's would.
    with mock.patch.object(numpy, "fromfile", lambda file, dtype, count: numpy.zeros(count, dtype)):
        for count, *arguments in [(words, path), *((steps, load, path) for load in loads)]:
            yield from count(*arguments)
            forget()


def forget() -> None:
    """What is loaded belongs to the card as it was."""
    import comfy.model_management
    from comfyui_lance.lance_model import loading

    comfy.model_management.current_loaded_models.clear()
    loading._in_use.clear()


def main() -> None:
    comfy_args.cpu, comfy_args.use_pytorch_cross_attention = True, True
    print("| what | launches | of them attention | waits | MB to the card | MB from it |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for what, count in measure(Path(folder)):
            launches, attention, waits, *moved = count
            there, back = (f"{size / 1e6:,.2f}" for size in moved)
            print(f"| {what} | {launches:,} | {attention:,} | {waits} | {there} | {back} |", flush=True)


if __name__ == "__main__":
    main()
