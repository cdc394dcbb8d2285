"""The demonstration model's autoencoder: ComfyUI's TAEHV in Wan 2.2's layout, trained narrow and widened with zeros.

Channels that are zero stay zero through ReLU, so the widened network computes what the narrow one does.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import torch
import torch.nn as nn
import torch.nn.functional as F
from comfy.latent_formats import Wan22
from comfy.taesd.taehv import TAEHV, Clamp, MemBlock, TGrow, TPool, conv
from PIL import Image

from . import world
from .report import Recent, Report
from .saved import Saved, save_whole

CHANNELS = 48
ENCODER, DECODER = (24, 40, 64), (96, 64, 32, 32)
RATE = 4e-3
AGAIN = 0.4  # of the rate, where a trained one learns on
WHOLE = 0.7  # from here on, on whole pictures, and with the statistics as they are
NOISE = 0.2  # at most, on the latents in training
DECODER_NOISE = 0.3  # what the transformer makes is about 0.1 off, at times more
FRAMED = 0.15  # of the pictures
SPACE = Wan22()  # its mean and deviation lie between the latents of the VAE and those that are sampled


class NarrowTAEHV(TAEHV):
    """Same modules, same names, fewer channels. Latents to be sampled are whitened by running statistics, which `fold`
    moves into the encoder's last layer."""

    def __init__(self):
        super().__init__(CHANNELS, parallel=True)
        act, pixels = nn.ReLU(inplace=True), 3 * self.patch_size**2

        def memory(n: int) -> list[nn.Module]:
            return [MemBlock(n, n, act) for _ in range(3)]

        down = []
        for before, n, stride in zip((ENCODER[0], *ENCODER), ENCODER, (2, 2, 1)):
            down += [TPool(before, stride), conv(before, n, stride=2, bias=False), *memory(n)]
        self.encoder = nn.Sequential(conv(pixels, ENCODER[0]), act, *down, conv(ENCODER[-1], CHANNELS))
        up = []
        for wide, narrow, stride in zip(DECODER, (*DECODER[1:],), (1, 2, 2)):
            up += [*memory(wide), nn.Upsample(scale_factor=2), TGrow(wide, stride), conv(wide, narrow, bias=False)]
        self.decoder = nn.Sequential(Clamp(), conv(CHANNELS, DECODER[0]), act, *up, act, conv(DECODER[-1], pixels))
        self.whiten = nn.BatchNorm3d(CHANNELS, affine=False, momentum=0.02)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.decoder[-1].weight)
        nn.init.constant_(self.decoder[-1].bias, 0.5)
        for block in self.modules():  # a memory block begins as the identity
            if isinstance(block, MemBlock):
                nn.init.zeros_(block.conv[4].weight)

    def latents(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips [B, 3, 1 + 4k, h, w] in 0..1 → white latents [B, 48, 1 + k, h / 16, w / 16], as they are sampled."""
        return self.whiten(SPACE.process_in(self.encode(clips)))

    def clips(self, latents: torch.Tensor) -> torch.Tensor:
        """The way back from `latents`."""
        return self.decode(SPACE.process_out(latents))

    def fold(self) -> dict[str, torch.Tensor]:
        """Weights in which the whitening is part of the encoder."""
        weights = {name: w.clone() for name, w in self.state_dict().items() if not name.startswith("whiten.")}
        last = f"encoder.{len(self.encoder) - 1}"
        scale = (self.whiten.running_var + self.whiten.eps).rsqrt()
        mean, std = SPACE.latents_mean.flatten(), SPACE.latents_std.flatten()
        weights[f"{last}.weight"] *= scale[:, None, None, None]
        weights[f"{last}.bias"] = (weights[f"{last}.bias"] - mean - self.whiten.running_mean * std) * scale + mean
        return weights


def pixels(pictures) -> torch.Tensor:
    """Pictures → [n, 3, h, w] in 0..1."""
    return torch.from_numpy(numpy.stack([numpy.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 255


def clip_pixels(frames: tuple[world.Scene, ...]) -> torch.Tensor:
    return pixels([world.render(frame) for frame in frames]).movedim(0, 1)


def importance(clips: torch.Tensor) -> torch.Tensor:
    """Weights [B, 1, t, h, w] of the pixels: objects and what surrounds them count more than plain background.

    The first column is always background.
    """
    objects = (clips - clips[..., :1]).abs().amax(dim=1, keepdim=True) > 0.1
    return 1 + 4 * F.max_pool3d(objects.float(), (1, 7, 7), stride=1, padding=(0, 3, 3))


def crop(rng, clips: torch.Tensor, scenes: list[world.Scene], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A square around an object of each clip, and the importance of its pixels."""
    weights, pieces = importance(clips), []
    for clip, weight, scene in zip(clips, weights, scenes):
        thing = rng.choice(scene.things)
        left, top = (
            int(min(max(center + rng.uniform(-12, 12) - side / 2, 0), world.SIDE - side))
            for center in (thing.x, thing.y)
        )
        pieces.append([x[..., top : top + side, left : left + side] for x in (clip, weight)])
    return tuple(torch.stack(piece) for piece in zip(*pieces))


def step_loss(
    model: NarrowTAEHV, clips: torch.Tensor, weights: torch.Tensor, from_still: bool, noise: float
) -> torch.Tensor:
    """Weighted error of pixels and of their differences to their neighbours, which are the edges. Each clip's latents
    get noise of up to `noise`."""
    z = model.latents(clips)
    if from_still:  # image to video begins with the latent of a still
        z = torch.cat([model.latents(clips[:, :, :1]), z[:, :, 1:]], dim=2)
    error = model.clips(z + noise * torch.rand(len(z), 1, 1, 1, 1) * torch.randn_like(z)) - clips
    loss = (weights * (error.abs() + 2 * error**2)).mean()
    for dim in (-1, -2):
        n = error.shape[dim] - 1
        loss = loss + (weights.narrow(dim, 1, n) * error.diff(dim=dim).abs()).mean()
    return loss


def a_picture(rng: random.Random) -> world.Scene:
    """Half of them from the hard world, and of these every third a word, whose strokes are the finest there is."""
    if rng.random() < 0.5:
        return world.a_scene(rng)
    category = "letters" if rng.random() < 1 / 3 else rng.choice(list(world.hard.PICTURES))
    return world.hard.PICTURES[category](rng).scene


def a_clip(rng: random.Random) -> tuple[world.Scene, ...]:
    return (world.a_clip if rng.random() < 0.5 else world.hard.two_movers)(rng).frames


def framed(rng: random.Random, picture: Image.Image) -> Image.Image:
    """Between bars, as no picture of the world is: an autoencoder should give back what a model is yet to learn."""
    picture, bar, color = picture.copy(), rng.randint(4, 16), rng.choice(list(world.BACKGROUNDS.values()))
    for top in (0, picture.height - bar):
        picture.paste(color, (0, top, picture.width, top + bar))
    return picture


def batches(rng: random.Random, count: int) -> list[tuple[torch.Tensor, list[world.Scene]]]:
    """So many stills and an eighth as many clips [B, 3, t, h, w], each with a scene that tells where its things are."""
    scenes = [a_picture(rng) for _ in range(count)]
    moving = [a_clip(rng) for _ in range(count // 8)]
    pictures = map(world.render, scenes)
    stills = pixels([framed(rng, p) if rng.random() < FRAMED else p for p in pictures])[:, :, None]
    clips = torch.stack([clip_pixels(frames) for frames in moving])
    return [(stills, scenes), (clips, [frames[world.FRAMES // 2] for frames in moving])]


def train(
    file: Path,
    seed: int,
    steps: int,
    report: Report,
    model: NarrowTAEHV,
    decoder_alone: bool = False,
    rate: float = RATE,
) -> NarrowTAEHV:
    """Trains on fresh pictures and clips, cut to what surrounds an object but in the last steps. Muon takes the kernels
    as matrices. With `decoder_alone` the encoder stays as it is, and all pictures are whole."""
    model = model.train().to(memory_format=torch.channels_last)  # twice as fast on a CPU
    model.encoder.requires_grad_(not decoder_alone)
    trained = [p for p in model.parameters() if p.requires_grad]
    kernels = [p for p in trained if p.ndim == 4]
    matrices = [nn.Parameter(p.detach().flatten(1).clone()) for p in kernels]
    optimizers = [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in trained if p.ndim == 1], lr=rate, weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, rate, total_steps=steps, pct_start=0.1) for o in optimizers]
    parts = dict(zip(("muon", "adamw", "muon schedule", "adamw schedule"), (*optimizers, *schedules)))
    saved = Saved(file, seed, model=model, **parts)
    for matrix, kernel in zip(matrices, kernels):
        matrix.data.copy_(kernel.data.flatten(1))
    rng, recent = saved.chance(), Recent()
    while saved.step < steps:
        step = saved.step
        if saved.due:
            rng = saved.chance()
        whole = decoder_alone or step > WHOLE * steps
        model.whiten.train(not whole)
        model.zero_grad(set_to_none=True)
        side, count = (world.SIDE, 16) if whole else (world.SIDE // 2, 48)
        for batch, shown in batches(rng, count)[: 1 if decoder_alone and step % 2 else 2]:
            batch, weights = crop(rng, batch, shown, side)
            from_still = batch.shape[2] > 1 and step % 2 == 1
            with torch.autocast(batch.device.type, torch.bfloat16):
                loss = step_loss(model, batch, weights, from_still, DECODER_NOISE if decoder_alone else NOISE)
            loss.backward()
            recent.add(loss.item())
        for matrix, kernel in zip(matrices, kernels):
            matrix.grad = kernel.grad.flatten(1)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
        for matrix, kernel in zip(matrices, kernels):
            kernel.data.copy_(matrix.data.view(kernel.shape))
        saved.step += 1
        if saved.due or saved.step == steps:
            saved.save()
        if saved.step % 50 == 0:
            report(f"{'decoder' if decoder_alone else 'autoencoder'} {saved.step}/{steps}: loss {recent.value:.4f}")
    return model.eval()


def trained(file: Path, seed: int, steps: int, report: Report, start: NarrowTAEHV | None = None) -> NarrowTAEHV:
    """As `file` holds it; else trained, from nothing or on from `start`, then its decoder alone for half as many
    steps, and written there."""
    torch.manual_seed(seed)
    model, rate = (NarrowTAEHV(), RATE) if start is None else (start, AGAIN * RATE)
    if not file.exists():
        for name, count, alone in (("autoencoder", steps, False), ("decoder", steps // 2, True)):
            if count:
                train(file.with_name(f"{name}_state.pt"), seed + alone, count, report, model, alone, rate)
        save_whole(model.state_dict(), file)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()
