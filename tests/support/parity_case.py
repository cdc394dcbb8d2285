"""A parity case: what the reference implementation computed on the tiny checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import av
import torch
from comfyui_lance.lance_model import language, media, tasks
from comfyui_lance.lance_model.sequence import Label
from PIL import Image
from safetensors import safe_open

from .sampling import Probe, relative, sample, schedule

PRESET = "image 256"  # of the media in the cases

# Name → label of the media's latents, system prompt, what is made.
CASES = {
    "t2i": (None, None, "image"),
    "t2i_late_steps": (None, None, "image"),
    "t2i_no_cfg": (None, None, "image"),
    "t2v": (None, None, "video"),
    "i2v": (None, None, "video"),
    "image_edit": (Label.SOURCE, tasks.EDIT["image"], "image"),
    "video_edit": (Label.SOURCE, tasks.EDIT["video"], "image"),
    "subject_image": (Label.REFERENCE, tasks.SUBJECT["image"], "image"),
    "subject_image_two": (Label.REFERENCE, tasks.SUBJECT["image"], "image"),
    "subject_video": (Label.REFERENCE, tasks.SUBJECT["video"], "image"),
}
ANSWERS = {"x2t_image": "image", "x2t_video": "video"}


@dataclass
class Case:
    """Tensors by name, and the task's settings."""

    folder: Path
    tensors: dict[str, torch.Tensor]
    settings: dict

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def latent(self, name: str) -> torch.Tensor:
        """[t, h, w, 48] as stored → [1, 48, t, h, w] in the model's own latent space."""
        return self.tensors[name].movedim(-1, 0)[None]

    def velocity(self, name: str) -> torch.Tensor:
        """[n, 48] as stored → [1, 48, t, h, w] of the predicted frames."""
        v = self.tensors[name].T
        return v.reshape(1, v.shape[0], -1, *self.tensors["latent"].shape[1:3])


def load_case(folder: Path, name: str) -> Case:
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["case"])
        return Case(folder, {key: file.get_tensor(key) for key in file.keys()}, settings)


def frames(case: Case, name: str) -> torch.Tensor:
    """A picture or the sampled frames of a clip, as ComfyUI images."""
    path = case.folder / name
    if path.suffix == ".png":
        return media.to_images([Image.open(path).convert("RGB")])
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        pictures = [frame.to_image() for frame in container.decode(video=0)]
    return media.sample_frames(media.to_images(pictures), float(rate))


def given_media(case: Case, label: Label | None, lance) -> list[media.Medium]:
    """The case's media as the vision encoder sees them; their latents are given, as the tiny checkpoint has no VAE."""
    out = []
    for i, name in enumerate(case.settings["media"]):
        seen = media.see(frames(case, name), PRESET)
        latent = lance[0].model.process_latent_out(case.latent(f"clean_latent_{i}")) if label is not None else None
        out.append(media.Medium(seen.patches, seen.grid, latent, label))
    return language.look(lance[1], out)


def encoded(case: Case, name: str, lance) -> tuple:
    """Positive and negative CONDITIONING, and the media seen."""
    label, system, target = CASES[name]
    seen = given_media(case, label, lance) if label is not None else []
    pair = language.encode_pair(lance[1], case.settings["prompt"], seen=seen, system=system, target=target)
    return *pair, seen


def given_frames(case: Case, name: str) -> dict[str, torch.Tensor]:
    """Latent and mask of image to video, whose first latent frame is given."""
    if name != "i2v":
        return {}
    latent = torch.zeros_like(case.latent("noise"))
    latent[:, :, :1] = case.latent("clean_latent_0")
    mask = torch.ones_like(latent[:, :1])
    mask[:, :, :1] = 0
    return {"latent": latent, "mask": mask}


def asked(case: Case, name: str, lance) -> language.Request:
    seen = given_media(case, None, lance)
    return language.Request(case.settings["prompt"], target=ANSWERS[name], media=tuple(seen))


def answered(case: Case, request: language.Request, lance) -> tuple[list[int], torch.Tensor]:
    """Ids of the greedy answer, and the logits of its first token."""
    logits = []
    hook = lance[1].cond_stage_model.lm_head.register_forward_hook(lambda module, args, output: logits.append(output))
    try:
        ids = language.answer(lance[1], lance[0], request, max_length=case.settings["max_length"])
    finally:
        hook.remove()
    return ids, logits[0][0]


def distances(case: Case, name: str, lance, steps: int | None = None) -> dict[str, float]:
    """How far from the reference: ‖ours - its‖ / ‖its‖ of the first velocities (of the branch that is further), of the
    latent after all steps unless `steps` are fewer, and of an answer's first logits (its 32 best)."""
    if name in ANSWERS:
        _, logits = answered(case, asked(case, name, lance), lance)
        return {"logits": relative(logits[case["first_logits_top_ids"]], case["first_logits_top"])}
    positive, negative, _ = encoded(case, name, lance)
    probe, settings = Probe(), case.settings
    sigmas = schedule(settings["steps"], settings["shift"])[: None if steps is None else steps + 1]
    noise = case.latent("noise")
    out = sample(probe.attach(lance[0]), positive, negative, noise, sigmas, settings["cfg"], **given_frames(case, name))
    far = []
    for branch, kind in enumerate(("velocity_cond", "velocity_uncond")):
        if kind in case.tensors:
            expected = case.velocity(kind)
            far.append(relative(probe.velocities[branch][:, :, -expected.shape[2] :], expected))
    return {"velocity": max(far)} | ({"latent": relative(out, case.latent("latent"))} if steps is None else {})
