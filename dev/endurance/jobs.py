"""Jobs for a server with the tiny weights, and what they leave: pictures, clips and words that can be compared."""

from __future__ import annotations

import itertools
import json
import time
import urllib.request
from pathlib import Path

import av
import numpy as np
import psutil
from PIL import Image

from ..host.server import ComfyServer, tiny_weights
from ..host.workflows import Prompt, texts

FAULTS = Path(__file__).resolve().parent.parent / "host" / "faults.py"
INPUT = "endurance.png"
LOADER, LATENT, ENCODER, SAMPLER, DECODER = "1", "2", "3", "4", "5"
MODEL, CLIP, VAE = ([LOADER, i] for i in range(3))

Result = list  # pictures and frames [height, width, 3], and texts


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
    """MiB of memory that the server has."""
    return psutil.Process(server.process.pid).memory_info().rss / 2**20
