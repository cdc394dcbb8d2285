"""The training examples: one function a task makes them, pools hold what they refer to, batches are drawn of them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

import torch

from ..lance_model import tasks
from ..lance_model.language import LanceTokenizer
from ..lance_model.resolution import OwnSize
from ..lance_model.sequence import IM_END, Label
from . import world
from .autoencoder import NarrowTAEHV, pixels

BATCH = {"t2v": 16, "i2v": 16, "clip edit": 12, "subject clip": 16, "clip text": 24, "edit": 32, "subject": 32} | {
    "two-step edits": 32,
    "two movers": 16,
}
LARGEST_BATCH = 40  # of the other tasks
# Of the hard world's pictures, as shares of the number of edits: more where there is more to tell apart.
HARD_PICTURES = dict.fromkeys(world.hard.PICTURES, 1 / 5) | {
    "single object": 1 / 20,
    "colors": 1 / 20,
    "letters": 2 / 5,
}
FIT = OwnSize().fit(world.SIDE, world.SIDE)


@dataclass
class Sample:
    """One training example. Pictures and clips are indices into the pools."""

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
class Examples:
    """Scenes and clips, and the samples over them."""

    rng: random.Random
    scenes: list[world.Scene] = field(default_factory=list)
    clips: list[world.Clip | world.hard.Movers] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def picture(self, scene: world.Scene) -> int:
        self.scenes.append(scene)
        return len(self.scenes) - 1

    def clip(self, clip: world.Clip | world.hard.Movers) -> int:
        self.clips.append(clip)
        return len(self.clips) - 1

    def add(self, *args, **kwargs) -> None:
        self.samples.append(Sample(*args, **kwargs))

    def chance(self) -> bool:
        return self.rng.random() < 0.5

    def worded(self, text: str) -> str:
        """A prompt as one person or another writes it."""
        return world.sentence(text) if self.chance() else text


# One function a task


def text_to_image(examples: Examples, picture: int) -> None:
    prompt = examples.worded(world.describe(examples.scenes[picture]))
    examples.add("t2i", prompt, tasks.TEXT_TO["image"], target=picture)


def caption(examples: Examples, picture: int) -> None:
    style = examples.rng.choice(list(tasks.CAPTION.values())).format(m="image")
    answer = world.sentence(world.describe(examples.scenes[picture]))
    examples.add("caption", "", style, (picture,), answer=answer)


def question(examples: Examples, picture: int) -> None:
    asked, answer = world.question(examples.rng, examples.scenes[picture])
    examples.add("question", asked, tasks.QUESTION["image"], (picture,), answer=answer)


def edit(examples: Examples, edit: world.Edit, source: int, target: int, task: str = "edit") -> None:
    prompt = examples.worded(edit.instruction)
    examples.add(task, prompt, tasks.EDIT["image"], (source,), label=Label.SOURCE, target=target)


def subject(examples: Examples, prompt: str, references: tuple[int, ...], target: int) -> None:
    prompt = examples.worded(prompt)
    examples.add("subject", prompt, tasks.SUBJECT["image"], references, label=Label.REFERENCE, target=target)


def text_to_video(examples: Examples, clip: int, prompt: str, task: str = "t2v") -> None:
    examples.add(task, prompt, tasks.TEXT_TO["video"], target=clip, clip_target=True)


def image_to_video(examples: Examples, clip: int, prompt: str) -> None:
    examples.add("i2v", prompt, tasks.TEXT_TO["video"], target=clip, clip_target=True, given=True)


def clip_caption(examples: Examples, clip: int) -> None:
    style = examples.rng.choice(list(tasks.CAPTION.values())).format(m="video")
    answer = world.sentence(examples.clips[clip].describe())
    examples.add("clip text", "", style, (clip,), clip_source=True, answer=answer)


def clip_question(examples: Examples, clip: int) -> None:
    asked, answer = world.clip_question(examples.rng, examples.clips[clip])
    examples.add("clip text", asked, tasks.QUESTION["video"], (clip,), clip_source=True, answer=answer)


def rewrite(examples: Examples, clip: world.Clip) -> None:
    """A short idea, alone or with the first frame, written out."""
    idea, shown = world.article(clip.first.things[0].name), ()
    if examples.chance():
        idea, shown = world.sentence(world.describe(clip.first)), (examples.picture(clip.first),)
    examples.add("rewrite", idea, tasks.REWRITE, shown, answer=world.sentence(clip.describe()))


def subject_clip(examples: Examples, clip: int) -> None:
    rng, wanted = examples.rng, examples.clips[clip]
    thing = wanted.first.things[0]
    x, y = world.POSITIONS[rng.choice(list(world.POSITIONS))]
    shown = replace(thing, x=x, y=y, angle=0.0, radius=min(thing.radius, 14))
    reference = world.Scene((shown,), **world.a_background(rng))
    prompt = examples.worded(f"the object from the picture {wanted.action} on {world.setting(wanted.first)}")
    sources, system = (examples.picture(reference),), tasks.SUBJECT["video"]
    examples.add("subject clip", prompt, system, sources, label=Label.REFERENCE, target=clip, clip_target=True)


def clip_edit(examples: Examples, instruction: str, source: int, target: int) -> None:
    prompt, system = examples.worded(instruction), tasks.EDIT["video"]
    examples.add(
        "clip edit", prompt, system, (source,), clip_source=True, label=Label.SOURCE, target=target, clip_target=True
    )


# One function a task of the hard world; the tasks have the names of its categories


def hard_picture(examples: Examples, category: str) -> None:
    asked = world.hard.PICTURES[category](examples.rng)
    prompt = examples.worded(asked.prompt)
    examples.add(category, prompt, tasks.TEXT_TO["image"], target=examples.picture(asked.scene))


def hard_question(examples: Examples) -> None:
    asked = world.hard.a_question(examples.rng)
    if len(asked.shown) == 1:
        shown, what = examples.picture(asked.shown[0]), "image"
    else:
        shown, what = examples.clip(asked.clip), "video"
    system = tasks.QUESTION[what]
    examples.add("questions", asked.asked, system, (shown,), clip_source=what == "video", answer=asked.answer)


def two_movers(examples: Examples) -> None:
    movers = world.hard.two_movers(examples.rng)
    clip = examples.clip(movers)
    text_to_video(examples, clip, examples.worded(movers.describe()), "two movers")
    clip_caption(examples, clip)


# All tasks together


def of_picture(examples: Examples, picture: int) -> None:
    text_to_image(examples, picture)
    (caption if examples.chance() else question)(examples, picture)


def of_clip(examples: Examples, clip: int) -> None:
    prompt = examples.worded(examples.clips[clip].describe())
    text_to_video(examples, clip, prompt)
    image_to_video(examples, clip, prompt)
    (clip_caption if examples.chance() else clip_question)(examples, clip)
    rewrite(examples, examples.clips[clip])


def make_examples(rng: random.Random, count: int) -> Examples:
    """`count` sets the number of edits, the rest follows."""
    examples = Examples(rng)
    add_simple_examples(examples, count)
    add_hard_examples(examples, count)
    return examples


def add_simple_examples(examples: Examples, count: int) -> None:
    rng = examples.rng
    for _ in range(count):
        made = world.an_edit(rng)
        source, target = examples.picture(made.source), examples.picture(made.target)
        edit(examples, made, source, target)
        of_picture(examples, source)
        of_picture(examples, target)
    for _ in range(count // 2):
        references, prompt, scene = world.a_subject(rng)
        target = examples.picture(scene)
        subject(examples, prompt, tuple(map(examples.picture, references)), target)
        of_picture(examples, target)
    for _ in range(count // 4):
        clip = examples.clip(world.a_clip(rng))
        of_clip(examples, clip)
        if examples.chance():
            subject_clip(examples, clip)
    for _ in range(count // 8):
        before, instruction, after = world.clip_edit(rng)
        source, target = examples.clip(before), examples.clip(after)
        of_clip(examples, target)
        clip_edit(examples, instruction, source, target)
    for _ in range(count // 2):
        of_picture(examples, examples.picture(world.several(rng)))


def add_hard_examples(examples: Examples, count: int) -> None:
    for category, share in HARD_PICTURES.items():
        for _ in range(math.ceil(count * share)):
            hard_picture(examples, category)
    for _ in range(count // 3):
        made = world.hard.two_steps(examples.rng)
        edit(examples, made, examples.picture(made.source), examples.picture(made.target), "two-step edits")
    for _ in range(count // 2):
        hard_question(examples)
    for _ in range(count // 6):
        two_movers(examples)


# Pools and batches


@dataclass
class Pools:
    """Latents and what the vision encoder sees, for pictures and clips, and the samples by task and shape."""

    latents: torch.Tensor  # [n, 48, 1, 4, 4]
    pixels: torch.Tensor  # [n, 56, 56, 3] uint8
    clip_latents: torch.Tensor  # [n, 48, 3, 4, 4]
    first_latents: torch.Tensor  # [n, 48, 1, 4, 4], of the first frame as a still
    clip_pixels: torch.Tensor  # [n, 10, 56, 56, 3] uint8
    clear: torch.Tensor  # [n] bool: pictures that can be read back from their latents
    buckets: dict[str, dict[tuple, list[Sample]]]

    def curated(self) -> Pools:
        """The samples whose pictures are all clear; all of a task that has none."""
        unclear = set((~self.clear).nonzero().flatten().tolist())

        def clear(sample: Sample) -> bool:
            pictures = () if sample.clip_source else sample.sources
            if sample.target is not None and not sample.clip_target:
                pictures = (*pictures, sample.target)
            return unclear.isdisjoint(pictures)

        buckets = {}
        for task, its in self.buckets.items():
            kept = {key: [s for s in samples if clear(s)] for key, samples in its.items()}
            buckets[task] = {key: samples for key, samples in kept.items() if samples} or its
        return replace(self, buckets=buckets)

    def samples(self) -> list[Sample]:
        return [s for buckets in self.buckets.values() for bucket in buckets.values() for s in bucket]

    def source_latents(self, batch: list[Sample]) -> list[torch.Tensor]:
        """Latents [B, 48, t, 4, 4] of each source of samples alike in shape."""
        pool = self.clip_latents if batch[0].clip_source else self.latents
        return [pool[torch.tensor(indices)].float() for indices in zip(*(s.sources for s in batch))]

    def source_pixels(self, batch: list[Sample]) -> list[torch.Tensor]:
        """What the vision encoder sees of each source, in 0..1: [B, 56, 56, 3], of clips [B, 10, 56, 56, 3]."""
        pool = self.clip_pixels if batch[0].clip_source else self.pixels
        return [pool[torch.tensor(indices)].float() / 255 for indices in zip(*(s.sources for s in batch))]

    def target_latents(self, batch: list[Sample]) -> torch.Tensor:
        pool = self.clip_latents if batch[0].clip_target else self.latents
        return pool[torch.tensor([s.target for s in batch])].float()

    def given_latents(self, batch: list[Sample]) -> torch.Tensor:
        """Latents [B, 48, 1, 4, 4] of the targets' first frames as stills."""
        return self.first_latents[torch.tensor([s.target for s in batch])].float()


def for_vision(pictures) -> torch.Tensor:
    """Bytes [n, h, w, 3] as the vision encoder sees them."""
    return (FIT.for_vision(pictures) * 255).round().to(torch.uint8)


@torch.no_grad()
def make_pools(examples: Examples, autoencoder: NarrowTAEHV, tokenizer: LanceTokenizer, device, report) -> Pools:
    latents, shown, clear = [], [], []
    for i in range(0, len(examples.scenes), 128):
        scenes = examples.scenes[i : i + 128]
        pictures = [world.render(scene) for scene in scenes]
        latents.append(autoencoder.latents(pixels(pictures)[:, :, None].to(device)).half())
        shown.append(for_vision(pictures))
        decoded = autoencoder.clips(latents[-1].float())[:, :, 0].clamp(0, 1).movedim(1, -1).cpu() * 255
        clear += map(world.hard.shows, scenes, decoded.numpy())
        if i % (128 * 64) == 0:
            report(f"pictures {i}/{len(examples.scenes)}")
    clip_latents, first_latents, clips_shown = [], [], []
    for i in range(0, len(examples.clips), 32):
        clips = [[world.render(frame) for frame in clip.frames] for clip in examples.clips[i : i + 32]]
        batch = torch.stack([pixels(frames).movedim(0, 1) for frames in clips]).to(device)
        clip_latents.append(autoencoder.latents(batch).half())
        first_latents.append(autoencoder.latents(batch[:, :, :1]).half())
        clips_shown += [for_vision([*frames, frames[-1]]) for frames in clips]
        if i % (32 * 64) == 0:
            report(f"clips {i}/{len(examples.clips)}")
    return Pools(
        torch.cat(latents),
        torch.cat(shown).to(device),
        torch.cat(clip_latents),
        torch.cat(first_latents),
        torch.stack(clips_shown).to(device),
        torch.tensor(clear),
        bucketed(examples.samples, tokenizer),
    )


def bucketed(samples: list[Sample], tokenizer: LanceTokenizer) -> dict[str, dict[tuple, list[Sample]]]:
    """The samples, tokenized, by task and by all that has to be alike in a batch."""
    buckets: dict[str, dict[tuple, list[Sample]]] = {}
    known: dict[str, tuple[int, ...]] = {}
    for sample in samples:
        for text in (sample.prompt, sample.answer or ""):
            if text not in known:
                known[text] = tokenizer.ids(text)
        sample.prompt_ids = known[sample.prompt]
        sample.answer_ids = (*known[sample.answer], IM_END) if sample.answer is not None else ()
        key = (sample.system, len(sample.prompt_ids), len(sample.answer_ids), len(sample.sources))
        buckets.setdefault(sample.task, {}).setdefault(key, []).append(sample)
    return buckets


def draw_batch(rng: random.Random, pools: Pools, task: str, largest: int = LARGEST_BATCH) -> list[Sample]:
    """Samples of one task, alike in shape."""
    buckets = pools.buckets[task]
    keys = list(buckets)
    key = rng.choices(keys, [len(buckets[k]) for k in keys])[0]
    return rng.choices(buckets[key], k=min(largest, BATCH.get(task, LARGEST_BATCH)))
