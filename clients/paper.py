"""Renders a benchmark's prompts at the paper's settings, into the folders that its scorer reads. Needs Python alone.

    python clients/paper.py geneval GenEVAL.jsonl --servers http://gpu1:8188 http://gpu2:8188 --out geneval
    python clients/paper.py vbench Vbench_recaption.jsonl --limit 2 --out trial

Where the prompts come from, what the scorers take and which figures to expect: docs/benchmarks-of-the-paper.md.

- What is there already is not made again, so the same command goes on after a stop. Files appear whole or not at all.
- A seed belongs to a prompt's place in its file: runs in one go, resumed or in shards make the same.
- A job whose server is lost goes to another. The server is waited for up to `--wait` seconds.
- A workflow that a server refuses ends the run; a job that fails is named, and the others go on.
- What a folder was made with stands beside it, in OUT.settings.json. It takes no files of other settings.
- Servers behind a login: see client.py. User, password and token of the environment go to every server.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import client
import paper_prompts
from paper_prompts import Job

API = Path(__file__).resolve().parent.parent / "api"
IMAGE_MODEL, VIDEO_MODEL = "Lance_3B/model.safetensors", "Lance_3B_Video/model.safetensors"
WAIT = 300  # seconds
PATIENCE = 24 * 3600  # seconds for a job: a clip on a slow card, behind others
LOSSES = 3  # of its server, after which a job is taken for the cause
AT_ONCE = 2  # jobs for a server: the next waits there while one is downloaded
PER_JOB = {"prompt", "seed", "image"}


@dataclass(frozen=True)
class Benchmark:
    """`jobs` are those of each prompt, from the file of prompts and the folder of the pictures to edit."""

    workflow: str
    settings: dict[str, object]  # of the workflow's inputs
    shift: float
    jobs: Callable[[Path, Path], list[list[Job]]]
    grid: bool = False  # four pictures in one file


PICTURES = {"model": IMAGE_MODEL, "size": "image 768x768", "steps": 50, "cfg": 4.0}
EDITS = {"model": IMAGE_MODEL, "resolution": "image 768", "steps": 50, "cfg": 4.0}
# The reference asks for 50 frames, which are 13 of the latent's, as 49 are.
CLIPS = {"model": VIDEO_MODEL, "size": "video 480p 848x480", "frames": 49, "steps": 30, "cfg": 4.0, "fps": 12}
BENCHMARKS = {
    "geneval": Benchmark("text_to_image", PICTURES, 3.5, paper_prompts.geneval),
    "dpg": Benchmark("text_to_image", PICTURES, 3.5, paper_prompts.dpg, grid=True),
    "gedit": Benchmark("image_edit", EDITS, 3.5, paper_prompts.gedit),
    "vbench": Benchmark("text_to_video", CLIPS, 3.0, paper_prompts.vbench),
}


def positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def shard(text: str) -> tuple[int, int]:
    """2/4 → (2, 4), the second of four shards."""
    part, _, count = text.partition("/")
    if not (part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1/4, the first of four shards")
    return int(part), int(count)


def chosen(benchmark: Benchmark, arguments: argparse.Namespace) -> list[Job]:
    """The jobs of this run, whether they are done or not."""
    images = arguments.images or arguments.prompts.parent / "images"
    prompts = benchmark.jobs(arguments.prompts, images)[: arguments.limit]
    part, count = arguments.shard
    jobs = list(itertools.chain(*prompts[part - 1 :: count]))
    missing = [job.source for job in jobs if job.source is not None and not job.source.is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} pictures to edit are not there, such as {missing[0]}. Give them with --images"
        )
    return jobs


# ---- The workflow ----------------------------------------------------------------------------------------------------


def of_type(prompt: client.Prompt, class_type: str) -> list[tuple[str, dict]]:
    """(node id, inputs) of the nodes of a class."""
    return [(i, node["inputs"]) for i, node in prompt.items() if node["class_type"] == class_type]


def add(prompt: client.Prompt, class_type: str, **inputs: object) -> list:
    """Adds a node; the link to its first output."""
    node = str(max(map(int, prompt)) + 1)
    prompt[node] = {"class_type": class_type, "inputs": inputs}
    return [node, 0]


def build(benchmark: Benchmark, title: str, unconditional: dict[str, str], settings: list) -> client.Prompt:
    """The shipped workflow at the paper's settings, then at those of --set; the jobs' own inputs are still to fill."""
    prompt = client.read(API / f"{benchmark.workflow}.json")
    ((_, sampler),) = of_type(prompt, "KSampler")
    shifted = add(prompt, "ModelSamplingSD3", model=sampler["model"], shift=benchmark.shift)
    guidance = {"start": 0.4, "end": 1.0, "renormalisation": "global"} | unconditional
    sampler["model"] = add(prompt, "LanceGuidance", model=shifted, **guidance)
    if benchmark.grid:
        tile(prompt)
    for key, value in {**benchmark.settings, "filename_prefix": f"paper/{title}"}.items():
        client.change(prompt, key, value)
    for key, value in settings:
        if key.rpartition(".")[2] in PER_JOB:
            raise ValueError(f"--set {key}: prompts, seeds and pictures are the benchmark's own")
        client.change(prompt, key, value)
    return prompt


def tile(prompt: client.Prompt) -> None:
    """Four samplers in place of one, and their pictures in two rows of two, as the scorer cuts them apart."""
    ((sampler, _),), ((decoder, _),) = of_type(prompt, "KSampler"), of_type(prompt, "VAEDecode")
    pictures = [[decoder, 0]]
    for _ in range(3):
        latent = add(prompt, "KSampler", **prompt[sampler]["inputs"])
        pictures.append(add(prompt, "VAEDecode", **prompt[decoder]["inputs"] | {"samples": latent}))

    def stitch(first: list, second: list, direction: str) -> list:
        how = {"direction": direction, "match_image_size": False, "spacing_width": 0, "spacing_color": "white"}
        return add(prompt, "ImageStitch", image1=first, image2=second, **how)

    rows = [stitch(*pictures[i : i + 2], "right") for i in (0, 2)]
    ((_, save),) = of_type(prompt, "SaveImage")
    save["images"] = stitch(*rows, "down")


def unconditional(urls: list[str]) -> dict[str, str]:
    """What Lance Guidance takes to have the unconditional branch with which the paper's figures were made."""
    answers, losses = {}, []
    for url in urls:
        try:
            answers[url] = client.ask(f"{url}/object_info/LanceGuidance")
        except client.ServerLost as loss:
            losses.append(str(loss))
    if not answers:
        raise client.ServerLost("; ".join(losses))
    if bare := [client.shown(url) for url, answer in answers.items() if not answer]:
        raise ValueError(f"{bare[0]} has no node Lance Guidance: install Lance there")
    described = [answer["LanceGuidance"]["input"] for answer in answers.values()]
    offered = ["unconditional" in {**d.get("required", {}), **d.get("optional", {})} for d in described]
    if len(set(offered)) > 1:
        raise ValueError("the servers have different versions of Lance: bring all to the newest")
    if not offered[0]:
        print("this version of Lance has the unconditional branch as trained alone, not the paper's", file=sys.stderr)
    return {"unconditional": "published"} if offered[0] else {}


def made_with(benchmark: str, prompt: client.Prompt) -> dict[str, object]:
    """What all files of a run have in common."""
    settings = {"benchmark": benchmark}
    for node, key in client.inputs(prompt):
        if key not in PER_JOB:
            settings[f"{node} {prompt[node]['class_type']}.{key}"] = prompt[node]["inputs"][key]
    return settings


def compare(record: Path, now: dict[str, object]) -> None:
    """ValueError if the folder that a record belongs to has files of other settings."""
    if not record.exists():
        return
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{record} cannot be read: delete it, if the files were made with these settings") from None
    if other := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        differing = ", ".join(f"{key}: {before.get(key)}, now {now.get(key)}" for key in other)
        raise ValueError(f"the folder was begun with other settings ({differing}). Give another --out")


# ---- Running it ------------------------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> None:
    """Writes it beside and renames it: a file is whole, or it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def make(url: str, template: client.Prompt, job: Job) -> bytes:
    """The file of a job, from a server; ValueError if the server refuses it."""
    prompt = deepcopy(template)
    client.change(prompt, "prompt", job.prompt)
    for (_, sampler), seed in zip(of_type(prompt, "KSampler"), job.seeds, strict=True):
        sampler["seed"] = seed
    if job.source is not None:
        client.change(prompt, "image", client.upload(url, job.source.name, job.source.read_bytes()))
    try:
        queued = client.queue(url, prompt)
    except client.JobError as refusal:
        raise ValueError(f"{client.shown(url)} refuses the workflow: {refusal}") from None
    made, ending = list(client.files(url, client.wait(url, queued, PATIENCE))), Path(job.file).suffix
    if [Path(file).suffix for file, _ in made] != [ending]:
        raise client.JobError(f"one {ending} file was expected, and {[file for file, _ in made]} came")
    return made[0][1]


def save(out: Path, job: Job, content: bytes) -> Path:
    """Writes a job's file, after those beside it; where it went."""
    for file, other in job.beside.items():
        write(out / file, other if isinstance(other, bytes) else other.read_bytes())
    write(out / job.file, content)
    return out / job.file


def answers(url: str, seconds: float) -> None:
    """Returns as soon as the server answers, and raises ServerLost if it does not within that time."""
    end = time.monotonic() + seconds
    while True:
        try:
            client.ask(f"{url}/queue")
            return
        except client.ServerLost:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def spread(jobs: list[Job], urls: list[str], run: Callable[[str, Job], bytes], seconds: float) -> Iterator[tuple]:
    """Each job with what `run` made of it, or with the sentence why there is nothing, as they come. Servers that are
    lost are waited for that long."""
    waiting, done = deque(jobs), queue.Queue()
    free, awaited, running = [(url, i) for i in range(AT_ONCE) for url in urls], set(), {}

    def start(slot: tuple[str, int], job: Job | None) -> None:
        def work() -> None:
            try:
                done.put((slot, run(slot[0], job) if job else answers(slot[0], seconds)))
            except Exception as error:  # noqa: BLE001 - of another thread, for this one
                done.put((slot, error))

        running[slot] = job
        threading.Thread(target=work, daemon=True).start()

    while waiting or any(running.values()):
        while waiting and free:
            start(free.pop(0), waiting.popleft())
        if not running:
            yield from ((job, f"no server is left of {', '.join(map(client.shown, urls))}") for job in waiting)
            return
        slot, result = done.get()
        job = running.pop(slot)
        if isinstance(result, client.ServerLost):
            after = "given up" if slot in awaited else f"lost, waiting up to {seconds:g} s"
            print(f"{client.shown(slot[0])} is {after} ({result})", file=sys.stderr)
            if slot not in awaited:
                awaited.add(slot)
                start(slot, None)
            if job is not None and (losses := job.losses + 1) < LOSSES:
                waiting.append(replace(job, losses=losses))
                continue
            result = client.JobError(f"it has lost its server {LOSSES} times, at last: {result}")
        else:
            free.append(slot)
        if isinstance(result, Exception) and not isinstance(result, client.JobError):
            raise result
        if job is not None:
            if isinstance(result, bytes):
                awaited.discard(slot)
            yield job, result if isinstance(result, bytes) else str(result)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("prompts", type=Path, help="the benchmark's file, as the reference repository has it")
    parser.add_argument("--servers", nargs="+", default=[client.SERVER], metavar="URL")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made; a begun one is completed")
    parser.add_argument("--images", type=Path, help="gedit: folder of the pictures; default: images beside the prompts")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N prompts alone")
    parser.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="one prompt in N, from the Ith on")
    parser.add_argument(
        "--set",
        type=client.setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="change an input, away from the paper's settings, such as model=…",
    )
    parser.add_argument("--wait", type=float, default=WAIT, metavar="SECONDS", help=f"for a lost server: {WAIT}")
    return parser


def complete(jobs: list[Job], urls: list[str], template: client.Prompt, record: Path, arguments) -> int:
    """Makes what is missing; how many failed."""
    failed = 0
    for job, result in spread(jobs, urls, lambda url, job: make(url, template, job), arguments.wait):
        if isinstance(result, str):
            failed += 1
            print(f"{job.file} FAILED: {result}", file=sys.stderr)
            continue
        if not record.exists():
            record.write_text(json.dumps(made_with(arguments.benchmark, template), indent=2) + "\n")
        print(save(arguments.out, job, result), flush=True)
    return failed


def main() -> int:
    parser = options()
    arguments = parser.parse_args()
    benchmark, out = BENCHMARKS[arguments.benchmark], arguments.out
    record = Path(f"{out.resolve()}.settings.json")
    try:
        urls = list(dict.fromkeys(map(client.address, arguments.servers)))
        jobs = chosen(benchmark, arguments)
        template = build(benchmark, arguments.benchmark, unconditional(urls), arguments.settings)
        compare(record, made_with(arguments.benchmark, template))
        out.mkdir(parents=True, exist_ok=True)
    except KeyError as error:
        parser.error(error.args[0])
    except (OSError, ValueError, client.ServerLost) as error:
        parser.error(str(error))
    missing = [job for job in jobs if not (out / job.file).exists()]
    try:
        failed = complete(missing, urls, template, record, arguments)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    there = len(jobs) - len(missing)
    print(f"{len(missing) - failed} of {len(jobs)} files made, {there} were there, {failed} failed, in {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
