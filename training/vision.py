"""The vision encoder's own schooling, before it meets the transformer: linear read-outs of its tokens name what is
where. Lance's encoder comes trained (it is Qwen2.5-VL's); this stands in for that."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..lance_model import media
from . import world
from .data import for_vision
from .report import Recent, Report
from .saved import Saved

BATCH, RATE = 128, 2e-3
SHAPES, COLORS = list(world.OUTLINES), list(world.COLORS)
SIZES, BACKGROUNDS = list(world.SIZES), list(world.BACKGROUNDS)
# Questions about a picture: how many answers each has. What is at a place may be nothing, answer 0.
ANSWERS = [*[1 + len(SHAPES), 1 + len(COLORS), 1 + len(SIZES)] * len(world.POSITIONS), len(BACKGROUNDS), 2, 4]


def answers(scene: world.Scene) -> list[int]:
    found = [[0, 0, 0] for _ in world.POSITIONS]
    for thing in scene.things:
        distances = [(x - thing.x) ** 2 + (y - thing.y) ** 2 for x, y in world.POSITIONS.values()]
        found[distances.index(min(distances))] = [
            1 + SHAPES.index(thing.shape),
            1 + COLORS.index(thing.color),
            1 + SIZES.index(thing.size),
        ]
    return [*sum(found, []), BACKGROUNDS.index(scene.background), int(scene.graded), len(scene.things)]


def embeddings(visual: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures [n, h, w, 3] or clips [n, t, h, w, 3] in 0..1, each alone → tokens [n, K, hidden]."""
    # A picture counts as two equal frames; pictures side by side in time are seen one by one.
    frames = pixels.flatten(0, 1) if pixels.ndim == 5 else pixels.repeat_interleave(2, dim=0)
    patches, grid = media.patches(frames)
    return visual(patches, grid).unflatten(0, (len(pixels), -1))


def train(file: Path, seed: int, visual: nn.Module, steps: int, pool: int, device, report: Report) -> None:
    """Trains `visual` on `pool` pictures, moved by up to a pixel."""
    rng = random.Random(seed)
    scenes = [world.a_scene(rng) for _ in range(pool)]
    pictures = torch.cat(
        [for_vision([world.render(scene) for scene in scenes[i : i + 128]]) for i in range(0, pool, 128)]
    )
    wanted = torch.tensor([answers(scene) for scene in scenes], device=device)
    tokens = embeddings(visual, pictures[:1].to(device) / 255)[0]
    heads = nn.Linear(tokens.numel(), sum(ANSWERS)).to(device)
    matrices = [p for name, p in visual.named_parameters() if p.ndim == 2]
    others = [p for p in visual.parameters() if p.ndim != 2]
    optimizers = [
        torch.optim.Muon(matrices, lr=RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*others, *heads.parameters()], lr=RATE, weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, RATE, total_steps=steps, pct_start=0.1) for o in optimizers]
    parts = dict(zip(("muon", "adamw", "muon schedule", "adamw schedule"), (*optimizers, *schedules)))
    saved = Saved(file, seed, visual=visual, heads=heads, **parts)
    recent = Recent()
    while saved.step < steps:
        if saved.due:
            saved.chance()
        chosen = torch.randint(pool, (BATCH,))
        shift = [int(s) for s in torch.randint(-1, 2, (2,))]
        shown = pictures[chosen].to(device).roll(shift, dims=(1, 2)) / 255
        logits = heads(embeddings(visual, shown).flatten(1))
        right = wanted[chosen.to(device)]
        parts = logits.split(ANSWERS, dim=1)
        loss = sum(F.cross_entropy(part, right[:, i]) for i, part in enumerate(parts))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
        all_right = torch.stack([part.argmax(1) == right[:, i] for i, part in enumerate(parts)]).all(0)
        recent.add(all_right.float().mean().item())
        saved.step += 1
        if saved.due or saved.step == steps:
            saved.save()
        if saved.step % 100 == 0:
            report(f"vision {saved.step}/{steps}: {recent.value:.0%} of pictures read right")
