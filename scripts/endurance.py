"""What a server has to survive, as a table; see endurance.sh. The tests run the same checks in short.

Each check takes a running server with the tiny weights and faults.py, returns what it measured in a few words and
raises Failed if the plugin did not hold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import av
import numpy as np
from comfy_server import ComfyServer, tiny_weights
from PIL import Image
from watching import watch

from workflows import Prompt, texts

FAULTS = Path(__file__).resolve().parent / "faults.py"
INPUT = "endurance.png"
LOADER, LATENT, ENCODER, SAMPLER, DECODER = "1", "2", "3", "4", "5"
MODEL, CLIP, VAE = ([LOADER, i] for i in range(3))
GROWTH_MIB = 64  # what a server may grow by once it is warm

Result = list  # pictures and frames [height, width, 3], and texts


class Failed(Exception):
    """The plugin did not hold; the message says where."""


def expect(holds: bool, sentence: str) -> None:
    if not holds:
        raise Failed(sentence)


# ---- Jobs ------------------------------------------------------------------------------------------------------------

_counter = itertools.count(1)


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def loader(model: str = "Lance_3B/model.safetensors", weight_dtype: str = "default") -> dict:
    return node("LanceLoader", model=model, weight_dtype=weight_dtype, vision="auto", vae="auto")


def sampled(encoder: dict, latent: list, steps: int, seed: int) -> Prompt:
    sampler = node(
        "KSampler", seed=seed, steps=steps, cfg=4.0, sampler_name="euler", scheduler="simple", denoise=1.0, model=MODEL
    )
    sampler["inputs"] |= {"positive": [ENCODER, 0], "negative": [ENCODER, 1], "latent_image": latent}
    return {
        LOADER: loader(),
        ENCODER: encoder,
        SAMPLER: sampler,
        DECODER: node("VAEDecode", samples=[SAMPLER, 0], vae=VAE),
    }


def picture(seed: int = 1, steps: int = 3, side: int = 64, frames: int = 1, prompt: str = "a red ball") -> Prompt:
    target = "image" if frames == 1 else "video"
    encoder = node("LanceEncode", clip=CLIP, target=target, prompt=prompt, negative_prompt="", system_prompt="")
    size = {"size": "custom", "size.width": side, "size.height": side}
    latent = node("EmptyLanceLatent", **size, frames=frames, batch_size=1)
    save = {"6": node("SaveImage", images=[DECODER, 0], filename_prefix="endurance")}
    return sampled(encoder, [LATENT, 0], steps, seed) | {LATENT: latent} | save


def clip(seed: int = 1, steps: int = 2, side: int = 64, frames: int = 9) -> Prompt:
    job = picture(seed, steps, side, frames, "a red ball rolls")
    job["6"] = node("CreateVideo", images=[DECODER, 0], fps=12.0, bit_depth=8)
    return job | {"7": node("SaveVideo", video=["6", 0], filename_prefix="endurance", format="auto", codec="auto")}


def edit(seed: int = 1, steps: int = 3, resolution: str = "keep size") -> Prompt:
    encoder = node("LanceEncodeEdit", clip=CLIP, vae=VAE, image=[LATENT, 0], prompt="make it blue", system_prompt="")
    encoder["inputs"] |= {"resolution": resolution, "negative_prompt": ""}
    job = sampled(encoder, [ENCODER, 2], steps, seed) | {LATENT: node("LoadImage", image=INPUT)}
    return job | {"6": node("SaveImage", images=[DECODER, 0], filename_prefix="endurance")}


def question(seed: int = 1, max_length: int = 8) -> Prompt:
    sampling = {"sampling": "on", "sampling.temperature": 0.7, "sampling.top_k": 50, "sampling.top_p": 0.9}
    sampling |= {"sampling.repetition_penalty": 1.05, "sampling.seed": seed}
    answer = node("LanceAnswer", model=MODEL, clip=CLIP, task="question", max_length=max_length, system_prompt="")
    answer["inputs"] |= {"task.question": "What is it?", "images.image0": [LATENT, 0], **sampling}
    answer["inputs"] |= {"image_resolution": "keep size", "video_resolution": "keep size", "positions": "reference"}
    shown = node("PreviewAny", source=[ENCODER, 0])
    return {LOADER: loader(), LATENT: node("LoadImage", image=INPUT), ENCODER: answer, "6": shown}


KINDS = (picture, clip, edit, question)


def fresh(job: Prompt) -> Prompt:
    """The same job, which ComfyUI cannot answer from its cache: blank system prompts are no system prompts."""
    blank = " " * next(_counter)
    for spec in job.values():
        if "system_prompt" in spec["inputs"]:
            spec["inputs"]["system_prompt"] = blank
    return job


# ---- The server ------------------------------------------------------------------------------------------------------


def server() -> ComfyServer:
    return ComfyServer(tiny_weights(), custom_nodes=(FAULTS,))


def prepare(server: ComfyServer) -> None:
    """The picture that edits and questions start from."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(server.base / "input" / INPUT)


def collect(server: ComfyServer, prompt_id: str) -> Result:
    entry = server.wait(prompt_id, timeout=600)
    found: Result = texts(entry)
    for path in server.outputs(entry):
        with av.open(str(path)) as file:
            found += [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return found


def run(server: ComfyServer, job: Prompt) -> Result:
    return collect(server, server.queue(fresh(job)))


def same(a: Result, b: Result) -> bool:
    """The same words, and pictures less than 4 levels apart in the mean: now and then a sum in another order moves a
    pixel by one, which a clip's compression spreads to less than 1; another result is 17 away."""
    return bool(a) and len(a) == len(b) and all(_alike(x, y) for x, y in zip(a, b))


def _alike(a: str | np.ndarray, b: str | np.ndarray) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return a.shape == b.shape and np.abs(a.astype(int) - b).mean() < 4


def post(server: ComfyServer, path: str, **values) -> None:
    urllib.request.urlopen(f"{server.url}{path}", json.dumps(values).encode(), timeout=60).close()


def running(server: ComfyServer) -> bool:
    with urllib.request.urlopen(f"{server.url}/queue", timeout=60) as answer:
        return bool(json.load(answer)["queue_running"])


def unload(server: ComfyServer) -> None:
    """Models out of memory and outputs out of ComfyUI's cache, as its menu does it."""
    post(server, "/free", unload_models=True, free_memory=True)
    time.sleep(0.5)  # a job that is queued before the server wakes up comes first


def resident(server: ComfyServer) -> float:
    """MiB of memory that the server has (Linux)."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


# ---- Checks ----------------------------------------------------------------------------------------------------------


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


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the endurance checks on a server with tiny random weights.")
    parser.add_argument("--jobs", type=int, default=100, help="how many mixed jobs; default: 100")
    parser.add_argument("--only", default="", help="those checks alone that have this in their name")
    arguments = parser.parse_args()
    failed = 0
    with server() as comfy:
        prepare(comfy)
        for name, check in checks(arguments.jobs).items():
            if arguments.only not in name:
                continue
            start = time.monotonic()
            try:
                result = check(comfy)
            except (Failed, RuntimeError, OSError, TimeoutError) as error:
                failed += 1
                result = f"FAILED: {error}"
            print(f"{name:24}{time.monotonic() - start:7.1f} s   {result}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
