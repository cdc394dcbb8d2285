"""Trains the demonstration model from nothing: `bash scripts/train_nano.sh`.

An autoencoder and a vision encoder first, as Lance begins with those of others; then all but the autoencoder in the
stages of the paper, over the sequences, positions and modules that the plugin itself uses. It can be stopped and goes
on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.ops
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from ..lance_model import media, nano, tasks
from ..lance_model.config import TransformerConfig, VisionConfig
from ..lance_model.language import LanceLanguage, LanceTokenizer, Request
from ..lance_model.plan import Plan
from ..lance_model.positions import latent_position_tables
from ..lance_model.resolution import OwnSize
from ..lance_model.sequence import IM_END, Label, Segment, Sequence, vision_slices
from ..lance_model.transformer import LanceTransformer
from . import autoencoder as autoencoders
from . import vision as encoders
from . import world

TRANSFORMER = TransformerConfig(hidden=160, layers=6, inner=320, heads=5, kv_heads=1, head_dim=32)
VISION = VisionConfig(hidden=96, layers=3, inner=192, out_hidden=160, heads=3, full_attention=(2,))
SHIFT = 2.0  # of the training timesteps
PROMPT_DROPPED = 0.1
NOISES = 2  # noisy targets for each context, which is computed once
UNUSED_ROWS = math.log(150_000)  # rows of the vocabulary that are left zero compete with logit 0 each
MICROBATCHES = 4  # of different tasks in a step, shared among the processes


@dataclass
class Sample:
    """One training example. Pictures are indices into the pools; a clip's are marked by `clip`."""

    task: str
    prompt: str
    system: str
    sources: tuple[int, ...] = ()  # media before the prompt
    clip_source: bool = False
    label: Label | None = None  # of the sources' latents; None: they are only looked at
    target: int | None = None
    clip_target: bool = False
    answer: str | None = None
    given: bool = False  # the first latent frame is given
    prompt_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()


@dataclass
class Pools:
    """Latents and what the vision encoder sees, for pictures and clips."""

    latents: torch.Tensor = None  # [n, 48, 1, 4, 4]
    seen: torch.Tensor = None  # [n, 56, 56, 3] uint8
    clip_latents: torch.Tensor = None  # [n, 48, 3, 4, 4]
    first_latents: torch.Tensor = None  # [n, 48, 1, 4, 4], of the first frame as a still
    clip_seen: torch.Tensor = None  # [n, 10, 56, 56, 3] uint8
    buckets: dict = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))


FIT = OwnSize().fit(world.SIDE, world.SIDE)


def for_vision(pictures) -> torch.Tensor:
    return (FIT.for_vision(pictures) * 255).round().to(torch.uint8)


def make_samples(rng: random.Random, count: int) -> tuple[list[world.Scene], list[world.Clip], list[Sample]]:
    """Scenes, clips and the samples over them; `count` sets the number of edits, the rest follows."""
    scenes: list[world.Scene] = []
    clips: list[world.Clip] = []
    samples: list[Sample] = []

    def picture(scene: world.Scene) -> int:
        scenes.append(scene)
        return len(scenes) - 1

    def add_clip(clip: world.Clip) -> int:
        clips.append(clip)
        return len(clips) - 1

    def worded(text: str) -> str:
        return world.sentence(text) if rng.random() < 0.5 else text

    def from_text(i: int, scene: world.Scene) -> None:
        samples.append(Sample("t2i", worded(world.describe(scene)), tasks.TEXT_TO["image"], target=i))
        if rng.random() < 0.5:
            style = rng.choice(list(tasks.CAPTION.values())).format(m="image")
            caption = world.sentence(world.describe(scene))
            samples.append(Sample("caption", "", style, (i,), answer=caption))
        else:
            q, a = world.question(rng, scene)
            samples.append(Sample("question", q, tasks.QUESTION["image"], (i,), answer=a))

    for _ in range(count):
        edit = world.an_edit(rng)
        source, target = picture(edit.source), picture(edit.target)
        samples.append(
            Sample("edit", worded(edit.instruction), tasks.EDIT["image"], (source,), label=Label.SOURCE, target=target)
        )
        from_text(source, edit.source)
        from_text(target, edit.target)
    for _ in range(count // 2):
        references, prompt, scene = world.a_subject(rng)
        i = picture(scene)
        sources = tuple(map(picture, references))
        samples.append(
            Sample("subject", worded(prompt), tasks.SUBJECT["image"], sources, label=Label.REFERENCE, target=i)
        )
        from_text(i, scene)

    def from_clip(i: int, clip: world.Clip) -> None:
        prompt = worded(clip.describe())
        samples.append(Sample("t2v", prompt, tasks.TEXT_TO["video"], target=i, clip_target=True))
        samples.append(Sample("i2v", prompt, tasks.TEXT_TO["video"], target=i, clip_target=True, given=True))
        if rng.random() < 0.5:
            style = rng.choice(list(tasks.CAPTION.values())).format(m="video")
            answer = world.sentence(clip.describe())
            samples.append(Sample("clip text", "", style, (i,), clip_source=True, answer=answer))
        else:
            q, a = world.clip_question(rng, clip)
            system = tasks.QUESTION["video"]
            samples.append(Sample("clip text", q, system, (i,), clip_source=True, answer=a))
        idea, shown = world.article(clip.first.things[0].name), ()
        if rng.random() < 0.5:
            idea, shown = world.sentence(world.describe(clip.first)), (picture(clip.first),)
        samples.append(Sample("rewrite", idea, tasks.REWRITE, shown, answer=world.sentence(clip.describe())))

    for _ in range(count // 4):
        clip = world.a_clip(rng)
        from_clip(add_clip(clip), clip)
        if rng.random() < 0.5:
            thing = clip.first.things[0]
            x, y = world.POSITIONS[rng.choice(list(world.POSITIONS))]
            reference = world.Scene(
                (world.replace(thing, x=x, y=y, angle=0.0, radius=min(thing.radius, 14)),), **world.a_background(rng)
            )
            prompt = f"the object from the picture {clip.action} on {clip.first.setting}"
            samples.append(
                Sample(
                    "subject clip",
                    worded(prompt),
                    tasks.SUBJECT["video"],
                    (picture(reference),),
                    label=Label.REFERENCE,
                    target=len(clips) - 1,
                    clip_target=True,
                )
            )
    for _ in range(count // 8):
        source, instruction, target = world.clip_edit(rng)
        i, j = add_clip(source), add_clip(target)
        from_clip(j, target)
        system = tasks.EDIT["video"]
        samples.append(
            Sample(
                "clip edit",
                worded(instruction),
                system,
                (i,),
                clip_source=True,
                label=Label.SOURCE,
                target=j,
                clip_target=True,
            )
        )
    for _ in range(count // 2):
        scene = world.several(rng)
        from_text(picture(scene), scene)
    return scenes, clips, samples


@torch.no_grad()
def fill_pools(scenes, clips, samples, autoencoder, tokenizer: LanceTokenizer, device, report) -> Pools:
    pools = Pools()
    latents, seen = [], []
    for i in range(0, len(scenes), 128):
        pictures = [world.render(scene) for scene in scenes[i : i + 128]]
        latents.append(autoencoder.latents(autoencoders.pixels(pictures)[:, :, None].to(device)).half())
        seen.append(for_vision(pictures))
        if i % (128 * 64) == 0:
            report(f"pictures {i}/{len(scenes)}")
    pools.latents, pools.seen = torch.cat(latents), torch.cat(seen).to(device)
    latents, first, seen = [], [], []
    for i in range(0, len(clips), 32):
        pictures = [[world.render(frame) for frame in clip.frames] for clip in clips[i : i + 32]]
        batch = torch.stack([autoencoders.pixels(p).movedim(0, 1) for p in pictures]).to(device)
        latents.append(autoencoder.latents(batch).half())
        first.append(autoencoder.latents(batch[:, :, :1]).half())
        seen += [for_vision([*p, p[-1]]) for p in pictures]
        if i % (32 * 64) == 0:
            report(f"clips {i}/{len(clips)}")
    pools.clip_latents, pools.first_latents = torch.cat(latents), torch.cat(first)
    pools.clip_seen = torch.stack(seen).to(device)
    known: dict[str, tuple[int, ...]] = {}
    for sample in samples:
        for text in (sample.prompt, sample.answer or ""):
            if text not in known:
                known[text] = tokenizer.ids(text)
        sample.prompt_ids = known[sample.prompt]
        sample.answer_ids = (*known[sample.answer], IM_END) if sample.answer is not None else ()
        key = (sample.system, len(sample.prompt_ids), len(sample.answer_ids), len(sample.sources))
        pools.buckets[sample.task][key].append(sample)
    return pools


def used_ids(tokenizer: LanceTokenizer, samples: list[Sample]) -> list[int]:
    """Rows of the vocabulary that the world uses."""
    ids = {i for sample in samples for i in (*sample.prompt_ids, *sample.answer_ids)}
    medium = media.Medium(None, (1, 4, 4), torch.zeros(1, 48, 1, 4, 4), Label.SOURCE)
    for system in {sample.system for sample in samples} | {tasks.ASSISTANT}:
        segments, _ = tokenizer.segments(Request("x", system, media=(medium,)), system)
        ids |= {i for segment in segments for i in segment.token_ids()}
    return sorted(ids)


VOCABULARY_NAMES = dict(zip(("language.embed_tokens.weight", "language.lm_head.weight"), nano.VOCABULARY_KEYS))


def packed_name(name: str) -> str:
    """A trainee's parameter, as the packed file names it."""
    return VOCABULARY_NAMES.get(name) or name.removeprefix("transformer.").removeprefix("language.")


def read_packed(path: Path, trainee: Trainee, rows: list[int]) -> None:
    """Takes the weights of a packed model; rows of the vocabulary that it lacks stay as they are."""
    with safe_open(path, "pt") as file:
        places = {row: i for i, row in enumerate(file.get_tensor(nano.ROWS).tolist())}
        known = [i for i, row in enumerate(rows) if row in places]
        for name, weight in trainee.named_parameters():
            stored = file.get_tensor(packed_name(name)).float()
            if name in VOCABULARY_NAMES:
                weight.data[known] = stored[[places[rows[i]] for i in known]]
            else:
                weight.data.copy_(stored)


def read_autoencoder(path: Path) -> autoencoders.NarrowTAEHV:
    """The autoencoder of a packed model, whose encoder whitens by itself."""
    model = autoencoders.NarrowTAEHV()
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(nano.VAE)]
        weights = {name.removeprefix(nano.VAE): file.get_tensor(name).float() for name in names}
    model.load_state_dict(weights, strict=False)
    return model.eval()


def pack(path: Path, weights: dict[str, torch.Tensor], vae: dict[str, torch.Tensor], rows: list[int]) -> None:
    """Writes what `nano.unpack` reads, in 16 bits."""
    tensors = {nano.ROWS: torch.tensor(rows, dtype=torch.int32)}
    for name, weight in weights.items():
        tensors[packed_name(name)] = weight.to(torch.bfloat16).cpu()
    tensors |= {nano.VAE + name: weight.half().cpu() for name, weight in vae.items()}
    settings = {
        "depth": VISION.layers,
        "num_heads": VISION.heads,
        "fullatt_block_indexes": list(VISION.full_attention),
    }
    save_file(tensors, path.with_suffix(".partial"), {"vision_config": json.dumps(settings)})
    path.with_suffix(".partial").replace(path)


class Trainee(torch.nn.Module):
    """The plugin's transformer and language modules, over the used rows of the vocabulary alone."""

    def __init__(self, rows: list[int], tokenizer: LanceTokenizer):
        super().__init__()
        operations = comfy.ops.disable_weight_init
        self.transformer = LanceTransformer(**vars(TRANSFORMER), dtype=torch.float32, operations=operations)
        self.language = LanceLanguage(
            TRANSFORMER.hidden, len(rows), VISION, tokenizer, dtype=torch.float32, operations=operations
        )
        self.register_buffer("rows", torch.full((151936,), -1), persistent=False)
        self.rows[rows] = torch.arange(len(rows))
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                torch.nn.init.constant_(weight, 1.0 if "norm" in name or "ln_q" in name else 0.0)
            elif "embed_tokens" in name:
                torch.nn.init.normal_(weight, std=0.5)
            elif "llm2vae" in name or "lm_head" in name:
                torch.nn.init.zeros_(weight)
            else:
                fan_in = math.prod(weight.shape[1:])
                deep = any(part in name for part in ("o_proj", "down_proj", "attn.proj"))
                torch.nn.init.normal_(weight, std=(0.3 if deep else 1.0) / math.sqrt(fan_in))

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.language.embed_tokens(self.rows[ids])


def embed_vision(trainee: Trainee, pools: Pools, indices: list[int], clip: bool) -> torch.Tensor:
    """Vision embeddings [n, K, hidden] of pictures or clips."""
    pixels = (pools.clip_seen if clip else pools.seen)[torch.tensor(indices)]
    # A picture counts as two equal frames; pictures side by side in time are seen one by one.
    pixels = pixels.flatten(0, 1) if clip else pixels.repeat_interleave(2, dim=0)
    patches, grid = media.patches(pixels.float() / 255)
    return trainee.language.visual(patches, grid).unflatten(0, (len(indices), -1))


def loss_of(trainee: Trainee, pools: Pools, batch: list[Sample], drop_prompt: bool) -> torch.Tensor:
    """Flow matching on the target's latents, or next-token cross-entropy on the answer, of samples alike in shape."""
    transformer, first, count = trainee.transformer, batch[0], len(batch)
    device = pools.latents.device
    latent_pool = pools.clip_latents if first.clip_source else pools.latents
    sources = [latent_pool[torch.tensor([s.sources[i] for s in batch])].float() for i in range(len(first.sources))]
    grid = (5, 4, 4) if first.clip_source else (1, 4, 4)
    seen = tuple(media.Medium(None, grid, x[:1] if first.label else None, first.label) for x in sources)
    request = Request("" if drop_prompt else first.prompt, first.system, media=seen)
    segments, head = trainee.language.tokenizer.segments(request, first.system)
    target = first.target is not None
    if target:
        clean = (pools.clip_latents if first.clip_target else pools.latents)[torch.tensor([s.target for s in batch])]
        clean = clean.float()
        segments.append(Segment(Label.TARGET, grid=tuple(clean.shape[2:])))
    else:
        segments.append(Segment(Label.TEMPLATE, first.answer_ids))
    sequence = Sequence(tuple(segments), None, head, mape=target)

    # Understanding tokens: ids first, then what the vision encoder sees.
    columns = []
    for segment in segments:
        if segment.label == Label.PROMPT:
            rows = [s.prompt_ids for s in batch]
        elif segment.ids and segment.ids == first.answer_ids:
            rows = [s.answer_ids for s in batch]
        else:
            rows = [segment.und_ids()] * count
        columns.append(torch.tensor(rows))
    ids = torch.cat(columns, dim=1).to(device)
    und = trainee.embed(ids)
    for i, place in enumerate(vision_slices(segments)):
        embeddings = embed_vision(trainee, pools, [s.sources[i] for s in batch], first.clip_source)
        und = torch.cat([und[:, : place.start], embeddings, und[:, place.stop :]], dim=1)

    lead = Plan.of(sequence, 0, 1)  # the system prompt, the same for all
    rest = Plan.of(sequence, 1, -1 if target else None)

    def frequencies(plan: Plan):
        return plan.frequencies(transformer.head_dim, device)

    def clean_tokens(latents: torch.Tensor) -> torch.Tensor:
        tables = latent_position_tables(tuple(latents.shape[2:]), transformer.hidden, device, torch.float32)
        return transformer.embed_latents(latents, torch.zeros(count, device=device), tables)

    gen = torch.cat([clean_tokens(x) for x in sources], dim=1) if first.label and sources else None
    system, _ = transformer.context(und[:1, lead.und], None, frequencies(lead), lead.runs)
    system = [tuple(x.expand(count, -1, -1, -1) for x in kv) for kv in system]
    known, states = transformer.context(
        und[:, rest.und],
        gen,
        frequencies(rest),
        rest.runs,
        [system],
        states=not target,
    )
    if not target:
        answers = ids[:, -len(first.answer_ids) :]
        states = states[:, -len(first.answer_ids) - 1 : -1]
        logits = trainee.language.lm_head(transformer.language_model.model.norm(states))
        unused = torch.full_like(logits[..., :1], UNUSED_ROWS)
        logits = torch.cat([logits, unused], dim=-1)
        losses = F.cross_entropy(logits.flatten(0, 1), trainee.rows[answers].flatten(), reduction="none")
        return losses.sum() / (count * math.sqrt(len(first.answer_ids))) / 3

    def several(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(NOISES, dim=0)

    clean = several(clean)
    t = torch.randn(len(clean), device=device).sigmoid()
    t = SHIFT * t / (1 + (SHIFT - 1) * t)
    noise = torch.randn_like(clean)
    kept = torch.ones_like(clean[:1, :1])
    if first.given:
        kept[:, :, 0] = 0
        start = several(pools.first_latents[torch.tensor([s.target for s in batch])].float())
        clean = torch.cat([start, clean[:, :, 1:]], dim=2)
    x = clean + kept * t[:, None, None, None, None] * (noise - clean)
    tau = t[:, None] * kept.flatten(1)
    tables = latent_position_tables(tuple(clean.shape[2:]), transformer.hidden, device, torch.float32)
    past = [[[tuple(several(x) for x in kv) for kv in piece] for piece in (system, known)]]
    end = Plan.of(sequence, -1)
    velocity = transformer._forward(x, tau, {}, several(und[:, end.und]), frequencies(end), tables, past)
    error = (velocity - (noise - clean)) ** 2 * kept
    return error.sum() / kept.expand_as(clean).sum()


FINE_TUNING = {
    "t2i": 3.5,
    "caption": 0.8,
    "question": 0.8,
    "rewrite": 0.3,
    "edit": 5,
    "subject": 2.6,
    "t2v": 0.8,
    "i2v": 0.4,
    "clip text": 0.5,
    "clip edit": 0.7,
    "subject clip": 0.5,
}
# Shares of the tasks: at the beginning and at the end of each stage of the paper.
STAGES = (
    # (share of the steps, tasks at its beginning, tasks at its end)
    # alignment
    (0.05, {"caption": 5, "question": 2, "t2i": 4}, {"caption": 5, "question": 2, "t2i": 4}),
    # pre-training of both experts
    (
        0.30,
        {"t2i": 5, "caption": 2, "question": 2, "t2v": 2, "i2v": 1, "clip text": 1},
        {"t2i": 4, "caption": 1.5, "question": 1.5, "t2v": 2.5, "i2v": 1, "clip text": 1},
    ),
    # multi-task: edits and references come in and grow
    (
        0.35,
        {"t2i": 4, "caption": 1, "question": 1, "t2v": 2, "i2v": 1, "clip text": 0.7, "rewrite": 0.2}
        | {"edit": 2, "subject": 1, "clip edit": 0.5, "subject clip": 0.5},
        FINE_TUNING,
    ),
    (0.30, FINE_TUNING, FINE_TUNING),
)
BATCH = {"t2v": 16, "i2v": 16, "clip edit": 12, "subject clip": 16, "clip text": 24, "edit": 32, "subject": 32}


def mixture(progress: float) -> dict[str, float]:
    for share, start, end in STAGES:
        if progress <= share or (share, start, end) == STAGES[-1]:
            t = min(progress / share, 1.0)
            return {task: start[task] * (1 - t) + end[task] * t for task in start}
        progress -= share
    raise AssertionError


def draw(rng: random.Random, pools: Pools, task: str) -> list[Sample]:
    buckets = pools.buckets[task]
    keys = list(buckets)
    key = rng.choices(keys, [len(buckets[k]) for k in keys])[0]
    return rng.choices(buckets[key], k=BATCH.get(task, 40))


def rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 150)
    return warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def reduce_gradients(parameters: list[torch.Tensor]) -> None:
    """Sums the gradients of all processes. Parameters that no process used keep none, so that nothing moves them."""
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
    flat = torch.cat([*((torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters), used])
    dist.all_reduce(flat)
    *gradients, used = flat.split([*(p.numel() for p in parameters), len(parameters)])
    for parameter, gradient, count in zip(parameters, gradients, used.tolist()):
        parameter.grad = gradient.view_as(parameter) if count else None


def write_pools(path: Path, arguments, autoencoder, report) -> None:
    made = make_samples(random.Random(arguments.seed), arguments.edits)
    pools = fill_pools(*made, autoencoder.to(device()), LanceTokenizer(), device(), report)
    pools.buckets = {task: dict(buckets) for task, buckets in pools.buckets.items()}
    torch.save(pools, path)


def train(rank: int, arguments, pools: Path, vae: dict, vision: dict, rendezvous: str, report) -> None:
    """One of `arguments.processes` that train together, from the finished weights of the autoencoder and the vision
    encoder."""
    comfy.model_management.in_training = True
    if arguments.processes > 1:
        torch.set_num_threads(max(1, os.cpu_count() // arguments.processes))
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=arguments.processes)
    tokenizer = LanceTokenizer()
    pools = torch.load(pools, weights_only=False)
    samples = [s for buckets in pools.buckets.values() for bucket in buckets.values() for s in bucket]
    rows = used_ids(tokenizer, samples)
    torch.manual_seed(arguments.seed)
    trainee = Trainee(rows, tokenizer).to(device())
    if arguments.start is not None:
        read_packed(arguments.start, trainee, rows)
    trainee.language.visual.load_state_dict(vision)
    parameters = list(trainee.parameters())
    matrices, others = [], []
    for name, weight in trainee.named_parameters():
        inside = ".layers." in name or "visual.blocks" in name or "merger" in name
        (matrices if weight.ndim == 2 and inside else others).append(weight)
    optimizers = [
        torch.optim.Muon(matrices, lr=arguments.rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=arguments.rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    average = [p.detach().clone() for p in parameters]
    state = arguments.out / "state.pt"
    step, losses = 0, defaultdict(lambda: [0.0, 0])
    if state.exists():
        saved = torch.load(state, weights_only=True)
        trainee.load_state_dict(saved["model"])
        for optimizer, its in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(its)
        average, step = [a.to(device()) for a in saved["average"]], saved["step"]
    rng = random.Random(f"{arguments.seed} {step} {rank}")
    torch.manual_seed(rng.getrandbits(32))

    def save() -> None:
        partial = state.with_suffix(".partial")
        torch.save(
            {
                "model": trainee.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "average": average,
                "step": step,
            },
            partial,
        )
        partial.replace(state)
        weights = {name: a for (name, _), a in zip(trainee.named_parameters(), average)}
        pack(arguments.out / "nano.safetensors", weights, vae, rows)

    if rank == 0:
        numbers = sum(p.numel() for p in parameters) / 1e6
        report(f"{len(samples)} samples, {len(rows)} rows, {numbers:.1f} M numbers, {arguments.processes} processes")
    started, begun = time.monotonic(), step
    while step < arguments.steps:
        mix = mixture(step / arguments.steps if arguments.start is None else 1.0)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = arguments.rate * rate(step, arguments.steps)
        for _ in range(MICROBATCHES // arguments.processes):
            task = rng.choices(list(mix), list(mix.values()))[0]
            batch = draw(rng, pools, task)
            dropped = batch[0].target is not None and rng.random() < PROMPT_DROPPED
            loss = loss_of(trainee, pools, batch, dropped)
            (loss / MICROBATCHES).backward()
            if not dropped:
                losses[task][0] += loss.item()
                losses[task][1] += 1
        if arguments.processes > 1:
            reduce_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(0.999, step / (step + 20)))
        if rank > 0:
            continue
        if step % 100 == 0:
            pace = (time.monotonic() - started) / (step - begun)
            words = ", ".join(f"{task} {total / n:.3f}" for task, (total, n) in sorted(losses.items()))
            left = pace * (arguments.steps - step) / 60
            report(f"{step}/{arguments.steps} ({pace:.2f} s a step, {left:.0f} min left): {words}")
            losses.clear()
        if step % 250 == 0 or step == arguments.steps:
            save()


class Report:
    """Prints with the minutes since the start."""

    def __init__(self):
        self.started = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"[{(time.monotonic() - self.started) / 60:5.1f} min] {text}", flush=True)


def trained_autoencoder(arguments, report) -> autoencoders.NarrowTAEHV:
    file = arguments.out / "autoencoder.pt"
    if arguments.start is not None:
        return read_autoencoder(arguments.start)
    if file.exists():
        autoencoder = autoencoders.NarrowTAEHV()
        autoencoder.load_state_dict(torch.load(file, weights_only=True))
        return autoencoder.eval()
    torch.manual_seed(arguments.seed)
    steps = arguments.autoencoder_steps
    autoencoder = autoencoders.train(random.Random(arguments.seed), steps, report)
    autoencoders.train(random.Random(arguments.seed + 1), steps // 2, report, autoencoder)
    torch.save(autoencoder.state_dict(), file)
    return autoencoder


def trained_vision(arguments, report) -> dict[str, torch.Tensor]:
    """Weights of the vision encoder."""
    file = arguments.out / "vision.pt"
    if not file.exists():
        torch.manual_seed(arguments.seed)
        trainee = Trainee([0], LanceTokenizer()).to(device())
        if arguments.start is not None:
            read_packed(arguments.start, trainee, [0])
        visual = trainee.language.visual
        rng, pool = random.Random(arguments.seed), 3 * arguments.edits // 2
        encoders.train(rng, visual, arguments.vision_steps, pool, for_vision, device(), report)
        torch.save(visual.state_dict(), file)
    return torch.load(file, weights_only=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demonstration model.")
    parser.add_argument("--out", type=Path, default=Path("nano_training"), help="folder for its state and the result")
    parser.add_argument("--steps", type=int, default=6000, help="of the transformer")
    parser.add_argument("--autoencoder-steps", type=int, default=4000)
    parser.add_argument("--vision-steps", type=int, default=1500)
    parser.add_argument("--edits", type=int, default=16000, help="edit pairs in the pool; the other tasks follow")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="a packed model to go on from, in the last stage")
    parser.add_argument(
        "--processes",
        type=int,
        choices=(1, 2, 4),
        default=1 if torch.cuda.is_available() else max(n for n in (1, 2, 4) if n <= os.cpu_count()),
        help="that train together on a CPU; small operations gain little from threads",
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = Report()
    autoencoder = trained_autoencoder(arguments, report)
    vision = trained_vision(arguments, report)
    pools = arguments.out / "pools.pt"
    if not pools.exists():
        write_pools(pools, arguments, autoencoder, report)
    with tempfile.TemporaryDirectory() as folder:
        given = (arguments, pools, autoencoder.cpu().fold(), vision, f"{folder}/rendezvous", report)
        if arguments.processes == 1:
            train(0, *given)
        else:
            torch.multiprocessing.spawn(train, given, nprocs=arguments.processes)
