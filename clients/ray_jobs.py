"""Many jobs over several ComfyUI servers, with Ray (`pip install ray`).

    python clients/ray_jobs.py caption PICTURES --servers http://gpu1:8188 http://gpu2:8188 --out captions
    python clients/ray_jobs.py render PROMPTS.txt --servers http://gpu1:8188 http://gpu2:8188 --out pictures

`caption` writes NAME.txt for each picture of a folder; `render` makes a picture of each line of a file.

- One actor for each server: it uploads, queues, waits and downloads, one job at a time.
- A job whose server is lost (no answer, or a proxy's 502, 503, 504) goes back to the queue. The server is used again
  if it comes back within `--wait` seconds; when none is left, the remaining jobs are named as failed.
- A job that a server refuses, or that fails, would fail elsewhere too: it is named, and the others go on. The same
  goes for one that has lost its server three times.
- Results are written as they come; a file that is there already stays, and the new one is called NAME_2.
- Servers behind a login: see client.py. User, password and token of the environment go to every server.

Captions come from api/caption.json, pictures from api/text_to_image.json, or from a `--workflow` in API format with the
same inputs. On a Ray cluster submit this folder: `ray job submit --working-dir clients -- python ray_jobs.py …`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import client

try:
    import ray
    import ray.exceptions
except ImportError:
    sys.exit("This needs Ray: pip install ray")

API = Path(__file__).resolve().parent.parent / "api"
WAIT = 300  # seconds
LOSSES = 3  # of its server, after which a job is taken for the cause
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass
class Job:
    """A workflow with `settings` for its inputs. `uploads` are files: input → path."""

    name: str
    prompt: client.Prompt
    settings: dict[str, object] = field(default_factory=dict)
    uploads: dict[str, Path] = field(default_factory=dict)
    losses: int = 0  # of a server that it was given to


@dataclass
class Result:
    name: str
    texts: list[str]
    files: list[tuple[str, bytes]]


@ray.remote(num_cpus=0)
class Server:
    def __init__(self, url: str, secrets: dict[str, str]):
        self.url = url
        os.environ.update(secrets)  # this may be another machine

    def answers(self, seconds: float) -> None:
        """Returns as soon as the server answers, and raises ServerLost if it does not within that time."""
        end = time.monotonic() + seconds
        while True:
            try:
                client.ask(f"{self.url}/queue")
                return
            except client.ServerLost:
                if time.monotonic() > end:
                    raise
                time.sleep(1)

    def run(self, job: Job, contents: dict[str, bytes]) -> Result:
        prompt = deepcopy(job.prompt)
        for name, path in job.uploads.items():
            client.change(prompt, name, client.upload(self.url, path.name, contents[name]))
        for name, value in job.settings.items():
            client.change(prompt, name, value)
        outputs = client.run(self.url, prompt)
        return Result(job.name, client.texts(outputs), list(client.files(self.url, outputs)))


def spread(jobs: list[Job], urls: list[str], seconds: float = WAIT) -> Iterator[tuple[Job, Result | str]]:
    """Each job with its result, or with the sentence why it has none, as they come. Servers that are lost are waited
    for that long."""
    secrets = {name: os.environ[name] for name in client.SECRETS if name in os.environ}
    waiting, free, running, awaited = deque(jobs), {}, {}, set()
    for url in urls:
        actor = Server.remote(url, secrets)
        running[actor.answers.remote(0)] = url, actor, None
    while waiting or any(job for _, _, job in running.values()):
        while waiting and free:
            url, actor = free.popitem()
            job = waiting.popleft()
            contents = {name: path.read_bytes() for name, path in job.uploads.items()}  # the actor may be elsewhere
            running[actor.run.remote(job, contents)] = url, actor, job
        if not running:
            yield from ((job, f"no server is left of {', '.join(map(client.shown, urls))}") for job in waiting)
            return
        (done,), _ = ray.wait(list(running))
        url, actor, job = running.pop(done)
        try:
            result = ray.get(done)
        except (client.ServerLost, ray.exceptions.RayActorError) as error:
            result = f"it has lost its server {LOSSES} times, at last: {_cause(error)}"
            if url in awaited:
                print(f"{client.shown(url)} is given up ({_cause(error)})", file=sys.stderr)
            else:
                print(f"{client.shown(url)} is lost, waiting up to {seconds:g} s ({_cause(error)})", file=sys.stderr)
                awaited.add(url)
                actor = actor if isinstance(error, client.ServerLost) else Server.remote(url, secrets)
                running[actor.answers.remote(seconds)] = url, actor, None
            if job is not None and (losses := job.losses + 1) < LOSSES:
                waiting.append(replace(job, losses=losses))
                continue
        except (client.JobError, KeyError, OSError) as error:
            result, free[url] = _cause(error), actor
        else:
            awaited.discard(url)
            free[url] = actor
        if job is not None:
            yield job, result


def _cause(error: Exception) -> str:
    """The words of the error itself, without Ray's trace."""
    return str(getattr(error, "cause", None) or error)


def captions(folder: Path, prompt: client.Prompt) -> list[Job]:
    """A job for each picture, by its name without ending, or with it where two differ in nothing else."""
    pictures = sorted(path.resolve() for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not pictures:
        raise ValueError(f"{folder} has no pictures ({', '.join(sorted(PICTURES))})")
    stems = Counter(path.stem for path in pictures)
    return [
        Job(path.stem if stems[path.stem] == 1 else path.name, prompt, uploads={"image": path}) for path in pictures
    ]


def pictures(lines: list[str], prompt: client.Prompt) -> list[Job]:
    """A job for each line that is not empty, each with a seed of its own."""
    lines = [line.strip() for line in lines if line.strip()]
    return [Job(f"{i:04}", prompt, {"prompt": line, "seed": i}) for i, line in enumerate(lines, 1)]


def save(result: Result, out: Path) -> list[Path]:
    """Writes NAME.txt and NAME.png, NAME_2.png …; what was written."""
    texts = [(".txt", "\n".join(result.texts).encode())] if result.texts else []
    made = [(Path(name).suffix or name, content) for name, content in result.files]
    return [client.store(out, result.name + ending, content) for ending, content in [*texts, *made]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("caption", "render"))
    parser.add_argument("source", type=Path, help="a folder of pictures, or a file of prompts, one a line")
    parser.add_argument("--servers", nargs="+", required=True, metavar="URL")
    parser.add_argument(
        "--out", type=Path, default=Path("."), help="folder for texts and pictures; no file in it is overwritten"
    )
    parser.add_argument(
        "--wait", type=float, default=WAIT, metavar="SECONDS", help=f"for a lost server; default: {WAIT}"
    )
    parser.add_argument(
        "--workflow", type=Path, help="in API format; default: api/caption.json, api/text_to_image.json"
    )
    arguments = parser.parse_args()
    workflow = arguments.workflow or API / {"caption": "caption.json", "render": "text_to_image.json"}[arguments.task]
    try:
        urls = list(dict.fromkeys(map(client.address, arguments.servers)))
        prompt = client.read(workflow)
        if arguments.task == "caption":
            jobs = captions(arguments.source, prompt)
        else:
            jobs = pictures(arguments.source.read_text(encoding="utf-8").splitlines(), prompt)
        arguments.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))

    ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    failed = 0
    for job, result in spread(jobs, urls, arguments.wait):
        if isinstance(result, str):
            failed += 1
            print(f"{job.name} FAILED: {result}", file=sys.stderr)
        else:
            print(job.name, *save(result, arguments.out), flush=True)
    print(f"{len(jobs) - failed} of {len(jobs)} jobs done, in {arguments.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
