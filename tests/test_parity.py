"""The plugin computes what the reference computes, through ComfyUI's real samplers, in float32 on the CPU.

The cases come from the folder named by LANCE_PARITY_CASES, by default the repository's own.
"""

import av
import pytest
import torch
from comfyui_lance.lance_model import language, media, tasks
from comfyui_lance.lance_model.positions import position_ids
from comfyui_lance.lance_model.sequence import CONDITIONING, IM_END, Label
from parity_case import Case, load_case
from PIL import Image
from sampling import Probe, sample, schedule

PRESET = "image 256"  # of the media in the cases


def frames(case: Case, name: str) -> torch.Tensor:
    """A picture or the sampled frames of a clip, as ComfyUI images."""
    path = case.folder / name
    if path.suffix == ".png":
        return media.to_images([Image.open(path).convert("RGB")])
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        pictures = [frame.to_image() for frame in container.decode(video=0)]
    return media.sample_frames(media.to_images(pictures), float(rate))


def given_media(case: Case, label: Label | None, model=None) -> list[media.Medium]:
    """The case's media; their latents are given, as the tiny checkpoint has no VAE."""
    out = []
    for i, name in enumerate(case.settings["media"]):
        seen = media.see(frames(case, name), PRESET)
        latent = model.model.process_latent_out(case.latent(f"clean_latent_{i}")) if label is not None else None
        out.append(media.Medium(seen.patches, seen.grid, latent, label))
    return out


def check_sequence(conditioning, case: Case, suffix: str = "") -> None:
    """Token ids, labels and position ids are the reference's, which closes the target with one more token."""
    sequence = conditioning[0][1][CONDITIONING].with_target(case["latent"].shape[:3])
    positions = torch.cat(position_ids(sequence), dim=1)
    assert torch.equal(positions, case["position_ids" + suffix][:, :-1])
    if not suffix:
        assert [*sequence.token_ids(), IM_END] == case["input_ids"].tolist()
        assert sequence.labels() == case["modality"].tolist()[:-1]


def check_vision(case: Case, seen: list[media.Medium]) -> None:
    """Patches equal the reference's exactly (every 37th row of all media), embeddings within 1e-4."""
    rows = torch.cat([medium.patches for medium in seen])[::37]
    assert [medium.grid for medium in seen] == [tuple(grid) for grid in case["vit_grid_thw"].tolist()]
    assert torch.equal(rows, case["vit_patch_rows"])
    assert (torch.cat([medium.embeddings for medium in seen]) - case["vit_embeds"]).abs().max() < 1e-4


def check_sampling(model, case: Case, positive, negative, **kwargs) -> None:
    """First velocities within 1e-4, final latents within 1e-3, and no more passes than the reference."""
    settings = case.settings
    probe = Probe()
    sigmas = schedule(settings["steps"], settings["shift"])
    out = sample(probe.attach(model), positive, negative, case.latent("noise"), sigmas, settings["cfg"], **kwargs)
    for branch, name in enumerate(("velocity_cond", "velocity_uncond")):
        if name in case.tensors:
            expected = case.velocity(name)
            assert (probe.velocities[branch][:, :, -expected.shape[2] :] - expected).abs().max() < 1e-4
    assert (out - case.latent("latent")).abs().max() < 1e-3
    assert probe.evaluations == settings["evaluations"]


@pytest.mark.parametrize("name", ["t2i", "t2i_late_steps", "t2i_no_cfg", "t2v"])
def test_text_to(name, lance, parity_folder):
    case = load_case(parity_folder, name)
    model, clip, _ = lance
    positive, negative = language.encode_pair(
        clip, case.settings["prompt"], target="video" if name == "t2v" else "image"
    )
    check_sequence(positive, case)
    if "position_ids_uncond" in case.tensors:
        check_sequence(negative, case, "_uncond")
    check_sampling(model, case, positive, negative)


@pytest.mark.parametrize(
    "name, label, system",
    [
        ("image_edit", Label.SOURCE, tasks.EDIT["image"]),
        ("video_edit", Label.SOURCE, tasks.EDIT["video"]),
        ("subject_image", Label.REFERENCE, tasks.SUBJECT["image"]),
        ("subject_image_two", Label.REFERENCE, tasks.SUBJECT["image"]),
        ("subject_video", Label.REFERENCE, tasks.SUBJECT["video"]),
    ],
)
def test_media_to(name, label, system, lance, parity_folder):
    case = load_case(parity_folder, name)
    model, clip, _ = lance
    seen = language.look(clip, given_media(case, label, model))
    check_vision(case, seen)
    positive, negative = language.encode_pair(clip, case.settings["prompt"], seen=seen, system=system)
    check_sequence(positive, case)
    check_sequence(negative, case, "_uncond")
    check_sampling(model, case, positive, negative)


def test_i2v(lance, parity_folder):
    case = load_case(parity_folder, "i2v")
    model, clip, _ = lance
    positive, negative = language.encode_pair(clip, case.settings["prompt"], target="video")
    check_sequence(positive, case)
    check_sequence(negative, case, "_uncond")
    latent = torch.zeros_like(case.latent("noise"))
    latent[:, :, :1] = case.latent("clean_latent_0")
    mask = torch.ones_like(latent[:, :1])
    mask[:, :, :1] = 0
    check_sampling(model, case, positive, negative, latent=latent, mask=mask)


@pytest.mark.parametrize("name, target", [("x2t_image", "image"), ("x2t_video", "video")])
def test_answers(name, target, lance, parity_folder):
    case = load_case(parity_folder, name)
    model, clip, _ = lance
    seen = language.look(clip, given_media(case, None))
    check_vision(case, seen)
    request = language.Request(case.settings["prompt"], target=target, media=tuple(seen))
    sequence = language.prepare(clip, request).question(request)
    assert sequence.token_ids() == case["input_ids"].tolist()
    positions = torch.cat(position_ids(sequence), dim=1)
    assert torch.equal(positions, case["position_ids"][:, : positions.shape[1]])

    logits = []
    hook = clip.cond_stage_model.lm_head.register_forward_hook(lambda module, args, output: logits.append(output))
    ids = language.answer(clip, model, request, max_length=case.settings["max_length"])
    hook.remove()
    expected = case["generated_ids"].tolist()
    assert ids == (expected[: expected.index(IM_END)] if IM_END in expected else expected)
    assert (logits[0][0, case["first_logits_top_ids"]] - case["first_logits_top"]).abs().max() < 1e-4
