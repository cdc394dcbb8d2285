"""What a server has to survive, as a table; see endurance.sh. The tests run the same checks in short.

Each check takes a running server with the tiny weights and faults.py, returns what it measured in a few words and
raises Failed if the plugin did not hold.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image

from ..host.server import ComfyServer
from ..host.watching import watch
from ..host.workflows import Prompt
from .jobs import (
    DECODER,
    ENCODER,
    KINDS,
    LOADER,
    MODEL,
    SAMPLER,
    VAE,
    clip,
    collect,
    edit,
    fresh,
    loader,
    node,
    picture,
    question,
    resident,
    run,
    running,
    same,
    unload,
)

GROWTH_MIB = 64  # what a server may grow by once it is warm


class Failed(Exception):
    """The plugin did not hold; the message says where."""


def expect(holds: bool, sentence: str) -> None:
    if not holds:
        raise Failed(sentence)


def mixed_jobs(server: ComfyServer, jobs: int = 100, warm_up: int = 20) -> str:
    """Queued all at once, in random order; the memory after the first ones is the memory after the last."""
    order = random.Random(0)
    queued = [server.queue(fresh(order.choice(KINDS)(seed))) for seed in range(warm_up + jobs)]
    for prompt_id in queued[:warm_up]:
        server.wait(prompt_id)
    before = resident(server)
    for prompt_id in queued[warm_up:]:
        expect(len(collect(server, prompt_id)) > 0, "a job made nothing")
    after = resident(server)
    expect(after - before < GROWTH_MIB, f"the server grew from {before:.0f} to {after:.0f} MiB in {jobs} jobs")
    return f"{before:.0f} MiB after warm-up, {after:.0f} MiB after {jobs} more"


def starts(job: Prompt, number: str) -> tuple[Prompt, Callable]:
    return job, lambda event, data: event == "executing" and data.get("node") == number


def reaches_step(job: Prompt, step: int) -> tuple[Prompt, Callable]:
    return job, lambda event, data: event == "progress" and data["value"] >= step


# Where to interrupt: a job that stays in that stage for long, when it is there, and the job that has to be right after.
STAGES = {
    "loading": (*starts(picture(), LOADER), picture),
    "encoding": (*starts(edit(resolution="image 768"), ENCODER), edit),
    "sampling": (*reaches_step(picture(steps=10_000), 3), picture),
    "decoding": (*starts(clip(side=256, frames=17), DECODER), clip),
    "answering": (*reaches_step(question(max_length=4096), 20), question),
}


def interrupt(server: ComfyServer, stage: str) -> str:
    long, when, kind = STAGES[stage]
    before = run(server, kind())
    if stage == "loading":
        unload(server)
    start = time.monotonic()
    ended = watch(server.url, fresh(long), when, timeout=300)
    seconds = time.monotonic() - start
    expect(ended.end == "execution_interrupted", f"the job was not interrupted: {ended.end}")
    expect(ended.saved() == [], "an interrupted job saved something")
    expect(same(run(server, kind()), before), "the next job differs from the one before")
    return f"ended in {seconds:.1f} s at {ended.events[-1][1]['node_type']}, the next job is the same"


def two_at_once(server: ComfyServer) -> str:
    """Queued by two clients at the same moment."""
    jobs = [picture(seed=1), edit(seed=2)]
    before = [run(server, job) for job in jobs]
    with ThreadPoolExecutor(2) as clients:
        after = list(clients.map(partial(run, server), jobs))
    expect(all(same(a, b) for a, b in zip(before, after)), "a job differs when another is queued with it")
    return "both are the same as alone"


def restart(server: ComfyServer) -> str:
    """The process is killed in the middle of a job and started again over the same folders."""
    before = run(server, picture())
    prompt_id = server.queue(fresh(picture(steps=10_000)))
    while not running(server):
        time.sleep(0.1)
    server.process.kill()
    server.process.wait()
    try:
        server.wait(prompt_id)
    except RuntimeError as error:
        expect("does not answer" in str(error), f"the client is told {error}")
    start = time.monotonic()
    server.start()
    seconds = time.monotonic() - start
    expect(same(run(server, picture()), before), "the job differs after the restart")
    return f"up again in {seconds:.0f} s, the next job is the same"


def reload(server: ComfyServer, times: int = 10) -> str:
    """Models unloaded and loaded again, by ComfyUI's own button."""
    before = [run(server, kind()) for kind in (picture, question)]
    sizes = []
    for _ in range(times):
        unload(server)
        after = [run(server, kind()) for kind in (picture, question)]
        expect(all(same(a, b) for a, b in zip(before, after)), "a job differs after the models were reloaded")
        sizes.append(resident(server))
    expect(sizes[-1] - sizes[0] < GROWTH_MIB, f"the server grew from {sizes[0]:.0f} to {sizes[-1]:.0f} MiB")
    return f"{sizes[0]:.0f} MiB after the first, {sizes[-1]:.0f} MiB after {times}, the same results"


def out_of_memory_in_sampling(server: ComfyServer) -> str:
    """The job fails with words about what to lower; the next one is right."""
    before = run(server, picture())
    job = fresh(picture())
    job["100"] = node("OutOfMemoryInSampling", model=MODEL, step=2)
    job[SAMPLER]["inputs"]["model"] = ["100", 0]
    told = refusal(server, job)
    expect("out of memory" in told and "batch_size" in told, f"the user is told {told!r}")
    expect(same(run(server, picture()), before), "the next job differs")
    return "says to lower batch_size, the next job is the same"


def out_of_memory_in_decode(server: ComfyServer) -> str:
    """Once: decoded in tiles. Again in the tiles: words about what to lower. The next job is right."""
    before = run(server, clip())

    def failing(times: int) -> Prompt:
        job = fresh(clip())
        job["100"] = node("OutOfMemoryInDecode", vae=VAE, times=times)
        job[DECODER]["inputs"]["vae"] = ["100", 0]
        return job

    tiled = collect(server, server.queue(failing(1)))
    expect([frame.shape for frame in tiled] == [frame.shape for frame in before], "the tiles make another clip")
    told = refusal(server, failing(1000))
    expect("out of memory" in told and "batch_size" in told, f"the user is told {told!r}")
    expect(same(run(server, clip()), before), "the next job differs")
    return "decoded in tiles; if they fail too, says to lower batch_size; the next job is the same"


def refusal(server: ComfyServer, job: Prompt) -> str:
    try:
        server.wait(server.queue(job))
    except RuntimeError as error:
        return str(error)
    raise Failed("the job did not fail")


def several_loaders(server: ComfyServer) -> str:
    """Three models in one job: two with the same weights make the same picture."""
    job, results = {}, {}
    models = {
        "a": loader(),
        "b": loader("Lance_3B_Video/model.safetensors"),
        "c": loader(weight_dtype="fp8_e4m3fn"),
    }
    unload(server)
    for name, model in models.items():
        own = fresh(picture()) | {LOADER: model}
        own["6"]["inputs"]["filename_prefix"] = f"endurance_{name}"
        for number, spec in own.items():
            links = {k: [f"{name}{v[0]}", v[1]] for k, v in spec["inputs"].items() if isinstance(v, list)}
            job[f"{name}{number}"] = {**spec, "inputs": spec["inputs"] | links}
    entry = server.wait(server.queue(job))
    for path in server.outputs(entry):
        results[path.name.split("_")[1]] = np.asarray(Image.open(path).convert("RGB"))
    expect(np.array_equal(results["a"], results["b"]), "two models with the same weights make two pictures")
    expect(not np.array_equal(results["a"], results["c"]), "fp8 makes the very same picture")
    return f"{len(models)} models in one job, {resident(server):.0f} MiB"


def checks(jobs: int) -> dict[str, Callable[[ComfyServer], str]]:
    return {
        f"{jobs} mixed jobs": partial(mixed_jobs, jobs=jobs),
        **{f"interrupt: {stage}": partial(interrupt, stage=stage) for stage in STAGES},
        "two at once": two_at_once,
        "killed and restarted": restart,
        "unloaded and reloaded": reload,
        "no memory: sampling": out_of_memory_in_sampling,
        "no memory: decode": out_of_memory_in_decode,
        "several loaders": several_loaders,
    }
