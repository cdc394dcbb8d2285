"""The prompt files of the paper's benchmarks, as its reference repository has them, and the files to make of them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

SEED = 42
SEEDS_APART = 1000  # of neighbouring prompts; more than any prompt has pictures
FLICKERING, FLICKERING_CLIPS = "temporal_flickering_prompts.json", 25  # the scorer's filter wants that many of each


@dataclass
class Job:
    """One file to make: `seeds` has one for each picture in it. `beside` are files that the scorer wants with it."""

    file: str
    prompt: str
    seeds: list[int]
    source: Path | None = None  # the picture to edit
    beside: dict[str, bytes | Path] = field(default_factory=dict)
    losses: int = 0  # of a server that it was given to


def lines(path: Path, **keys: type | tuple[type, ...]) -> list[dict]:
    """The objects of a file with one a line; ValueError if one lacks a key, or it is of another type."""
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not all(isinstance(entry[key], type) for key, type in keys.items()):
                raise ValueError
        except (ValueError, LookupError, TypeError):
            raise ValueError(
                f"{path}, line {number}, is no object with {', '.join(keys)}. "
                "Give the benchmark's file as the reference repository has it"
            ) from None
        entries.append(entry)
    return entries


def name(text: object) -> str:
    """The text as a file's name; ValueError if it is none."""
    if not str(text).strip(".") or set("/\\\0") & set(str(text)):
        raise ValueError(f"{text!r} of the prompts cannot be the name of a file")
    return str(text)


def seeds(prompt: int, count: int) -> list[int]:
    """Of the pictures of the prompt in that place of its file."""
    return [SEED + SEEDS_APART * prompt + i for i in range(count)]


def geneval(path: Path, images: Path) -> list[list[Job]]:
    """00000/samples/0000.png to 0003.png, and 00000/metadata.jsonl."""
    found = []
    for place, entry in enumerate(lines(path, index=int, data=str, additional_info=dict)):
        folder = f"{entry['index']:05}"
        beside = {f"{folder}/metadata.jsonl": (json.dumps(entry["additional_info"]) + "\n").encode()}
        each = enumerate(seeds(place, 4))
        found.append([Job(f"{folder}/samples/{i:04}.png", entry["data"], [seed], None, beside) for i, seed in each])
    return found


def dpg(path: Path, images: Path) -> list[list[Job]]:
    """INDEX.png, with four pictures in it."""
    entries = enumerate(lines(path, index=(str, int), data=str))
    return [[Job(f"{name(entry['index'])}.png", entry["data"], seeds(place, 4))] for place, entry in entries]


def gedit(path: Path, images: Path) -> list[list[Job]]:
    """fullset/TASK/LANGUAGE/KEY.png, and what was edited as KEY_SRCIMG.png."""
    found = []
    try:
        for place, entry in enumerate(json.loads(path.read_text(encoding="utf-8")).values()):
            instruction, picture, info = *entry["interleave_array"][:2], entry["additional_info"]
            parts = [name(info[key]) for key in ("task_type", "instruction_language", "key")]
            source, stem = images / Path(picture).name, "/".join(["fullset", *parts])
            if not source.is_file():
                source = images / f"{parts[-1]}.png"
            found.append([Job(f"{stem}.png", instruction, seeds(place, 1), source, {f"{stem}_SRCIMG.png": source})])
    except (LookupError, TypeError, AttributeError, json.JSONDecodeError):
        raise ValueError(f"{path} is not GEdit_en.json as the reference repository has it") from None
    return found


def vbench(path: Path, images: Path) -> list[list[Job]]:
    """PROMPT-0.mp4 to PROMPT-4.mp4, of some to PROMPT-24.mp4. Two prompts of one name stand in the file: the first is
    taken."""
    flickering = path.parent / FLICKERING
    if not flickering.is_file():
        print(f"{flickering} is not there, so all prompts get 5 clips: too few for that dimension", file=sys.stderr)
    many = set(json.loads(flickering.read_text(encoding="utf-8"))) if flickering.is_file() else set()
    found: dict[str, list[Job]] = {}
    for place, entry in enumerate(lines(path, data=str, original_prompt_en=str)):
        title = name(entry["original_prompt_en"])
        each = enumerate(seeds(place, FLICKERING_CLIPS if title in many else 5))
        found.setdefault(title, [Job(f"{title}-{i}.mp4", entry["data"], [seed]) for i, seed in each])
    return list(found.values())
