"""Clips from files: frames by their true times, no more of them in memory than the model sees."""

from __future__ import annotations

import io
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy
import pytest
import torch
from comfy_api.latest import InputImpl, Types
from comfyui_lance.lance_model import language, media
from comfyui_lance.nodes.answer import LanceAnswer, LanceEnhancePrompt
from comfyui_lance.nodes.edit import LanceEncodeEdit, LanceEncodeVideoEdit, sampled
from comfyui_lance.nodes.frames import LanceImageToVideo
from comfyui_lance.nodes.reference import LanceEncodeReferences
from support.sampling import sample, schedule

ENCODERS = {".webm": "libvpx-vp9", ".mp4": "libx264", ".mkv": "libx264", ".ts": "libx264", ".h264": "libx264"}
# Bursts of 30 frames a second between pauses, for three seconds, as a screen recording has them.
BURSTS = [0, 33, 66, 100, 400, 433, 900, 1300, 1333, 1400, 2000, 2033, 2500, 2966]


def record(
    path: Path,
    frames: int | list[int],
    rate: int | Fraction = 30,
    size: tuple[int, int] = (32, 32),
    codec: str = "",
    pixels: str = "yuv420p",
) -> InputImpl.VideoFromFile:
    """A file of so many frames at a constant rate, or of frames at these times in milliseconds."""
    width, height = size
    times = None if isinstance(frames, int) else frames
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or ENCODERS[path.suffix], rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(len(times) if times else frames):
            ramp = numpy.linspace(0, 60, width * height * 4).reshape(height, width, 4) + 17 * i % 190
            frame = av.VideoFrame.from_ndarray(ramp.astype(numpy.uint8), format="rgba").reformat(format=pixels)
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return InputImpl.VideoFromFile(str(path))


def pictures(images: torch.Tensor) -> torch.Tensor:
    """As the model gets them, in 8 bits."""
    return torch.stack([torch.from_numpy(numpy.array(picture)) for picture in media.to_pictures(images)])


@pytest.mark.parametrize("name, rate", [("a.webm", 30), ("a.webm", 1000), ("a.mp4", 30), ("a.mp4", 1000)])
@pytest.mark.parametrize("times", [BURSTS, [0, 1500, 1533, 2967]], ids=["bursts", "four"])
def test_a_recording_keeps_its_pace(name, rate, times, tmp_path):
    video = record(tmp_path / name, times, rate)
    frames, seconds = sampled(video)
    assert seconds == pytest.approx(3, abs=0.05) and len(frames) == 33
    shown = numpy.searchsorted(times, [1000 * seconds * i / 33 for i in range(33)], side="right") - 1
    assert torch.equal(pictures(frames), pictures(video.get_components().images[shown]))


def test_a_recording_of_constant_rate_keeps_its_pace_where_its_file_names_another(tmp_path):
    frames, seconds = sampled(record(tmp_path / "a.webm", [40 * i for i in range(75)], 1000))
    assert seconds == pytest.approx(3, abs=0.05) and len(frames) == 33


def test_an_edited_recording_lasts_as_long_as_its_source(tmp_path, lance):
    video = record(tmp_path / "a.webm", BURSTS, 1000)
    *_, latent, fps = LanceEncodeVideoEdit.execute(
        lance[1], lance[2], video, "Make it night.", media.KEEP, 12.0, 6.0
    ).result
    assert (4 * latent["samples"].shape[2] - 3) / fps == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize(
    "name, codec, rate, frames",
    [
        ("a.mp4", "", 30, 100),
        ("a.mp4", "", Fraction(30000, 1001), 100),
        ("a.webm", "", Fraction(30000, 1001), 100),
        ("a.webm", "", Fraction(15, 2), 40),
        ("a.ts", "", 25, 60),
        ("a.gif", "gif", Fraction(25, 2), 30),
        ("a.avi", "mpeg4", 24, 200),
        ("a.mp4", "", 30, 1),
        ("a.webm", "", 30, 2),
    ],
)
def test_a_constant_rate_is_sampled_as_the_reference_does(name, codec, rate, frames, tmp_path):
    video = record(tmp_path / name, frames, rate, codec=codec, pixels="rgb8" if codec == "gif" else "yuv420p")
    components = video.get_components()
    assert len(components.images) == frames
    seen, seconds = sampled(video)
    assert torch.equal(pictures(seen), pictures(media.sample_frames(components.images, float(components.frame_rate))))
    assert seconds == pytest.approx(frames / rate)


def test_memory_does_not_grow_with_a_clip(tmp_path):
    video = record(tmp_path / "a.mp4", 900, size=(160, 160))
    tracemalloc.start()
    seen = len(sampled(video)[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 69 and peak < 10 * 160 * 160 * 3 * 4  # ten of 900 frames in floats


def turned(video: InputImpl.VideoFromFile, quarter: int) -> InputImpl.VideoFromFile:
    """The file with a display matrix that turns it, as phones write it."""
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter]
    path = Path(video.get_stream_source())
    data = bytearray(path.read_bytes())
    # Behind the box's name stand a version, five numbers, two of padding and the layer's four halves.
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return video


@pytest.mark.parametrize(
    "name, codec, pixels, size, quarter",
    [
        ("a.mp4", "", "yuv420p", (66, 50), 0),
        ("a.mp4", "", "yuv420p", (64, 48), 1),
        ("a.mp4", "", "yuv420p", (66, 50), 2),
        ("a.mp4", "", "yuv420p10le", (64, 50), 3),
        ("a.mkv", "", "yuv444p10le", (33, 35), 0),
        ("a.webm", "", "yuva420p", (34, 32), 0),
        ("a.mkv", "mjpeg", "yuvj420p", (50, 34), 0),
        ("a.mkv", "ffv1", "bgr0", (33, 31), 0),
        ("a.mkv", "ffv1", "gbrp10le", (33, 31), 0),
        ("a.mkv", "ffv1", "yuva444p", (64, 33), 0),
        ("a.mov", "png", "rgba", (33, 31), 0),
        ("a.mov", "png", "rgb48be", (33, 31), 0),
        ("a.mov", "prores_ks", "yuva444p10le", (48, 32), 0),
        ("a.gif", "gif", "rgb8", (33, 31), 0),
    ],
)
def test_frames_are_those_that_comfyui_decodes(name, codec, pixels, size, quarter, tmp_path):
    video = record(tmp_path / name, 30, 25, size, codec, pixels)
    video = turned(video, quarter) if quarter else video
    components = video.get_components()
    if quarter % 2:
        assert components.images.shape[1:3] == (size[0], size[1])
    expected = media.sample_frames(components.images, float(components.frame_rate))
    assert torch.equal(pictures(sampled(video)[0]), pictures(expected))


@pytest.mark.parametrize("start, duration", [(1, 1.5), (0, 2), (1.51, 0), (-1.2, 0), (2.9, 3)])
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_trimmed_clip_is_what_comfyui_makes_of_it(start, duration, in_memory, tmp_path):
    path = record(tmp_path / "a.mp4", 100).get_stream_source()
    source = io.BytesIO(Path(path).read_bytes()) if in_memory else path
    video = InputImpl.VideoFromFile(source, start_time=start, duration=duration)
    components = video.get_components()
    frames, seconds = sampled(video)
    assert torch.equal(pictures(frames), pictures(media.sample_frames(components.images, 30)))
    assert seconds == pytest.approx(len(components.images) / 30)


def test_a_trimmed_recording_with_pauses_ends_where_it_was_cut(tmp_path):
    path = record(tmp_path / "a.mkv", BURSTS).get_stream_source()
    frames, seconds = sampled(InputImpl.VideoFromFile(path, start_time=0.3, duration=1.5))
    assert seconds == pytest.approx(1.4, abs=0.05) and len(frames) == 17  # from the frame at 0.4 s


def test_a_stream_without_times_goes_by_its_rate(tmp_path):
    frames, seconds = sampled(record(tmp_path / "a.h264", 50, 25))
    assert len(frames) % 4 == 1 and seconds == pytest.approx(2)


def sound(path: Path) -> InputImpl.VideoFromFile:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(numpy.zeros((1, 1024), numpy.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return InputImpl.VideoFromFile(str(path))


def text(path: Path) -> InputImpl.VideoFromFile:
    path.write_text("not a clip")
    return InputImpl.VideoFromFile(str(path))


def two_sizes(path: Path) -> InputImpl.VideoFromFile:
    parts = [record(path.with_name(f"{n}.ts"), 30, size=(n, n)).get_stream_source() for n in (32, 64)]
    path.with_suffix(".ts").write_bytes(b"".join(Path(part).read_bytes() for part in parts))
    return InputImpl.VideoFromFile(str(path.with_suffix(".ts")))


def components(path: Path) -> InputImpl.VideoFromComponents:
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=torch.zeros(0, 0, 0, 3), frame_rate=Fraction(24)))


def past_its_end(path: Path) -> InputImpl.VideoFromFile:
    return InputImpl.VideoFromFile(record(path, 30).get_stream_source(), start_time=9)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (sound, "The clip has no pictures"),
        (text, "The clip cannot be read"),
        (two_sizes, "changes its size from 32x32 to 64x64"),
        (components, "The clip has no frames"),
        (past_its_end, "The clip has no frames"),
    ],
)
def test_a_clip_without_frames_is_refused(make, sentence, tmp_path, lance):
    video = make(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=sentence):
        LanceEncodeVideoEdit.execute(lance[1], lance[2], video, "Make it night.", media.KEEP, 12.0, 6.0)
    with pytest.raises(ValueError, match=sentence):
        LanceAnswer.execute(*lance[:2], {"task": "caption", "style": "detailed"}, 1, {"sampling": "off"}, video=video)


EMPTY, ONE = torch.zeros(0, 64, 64, 3), torch.rand(1, 64, 64, 3)


@pytest.mark.parametrize(
    "name, run",
    [
        ("image", lambda m, c, v: LanceEncodeEdit.execute(c, v, EMPTY, "Make it blue.", media.KEEP)),
        ("start", lambda m, c, v: LanceImageToVideo.execute(v, media.KEEP, 9, 1, start=EMPTY)),
        ("end", lambda m, c, v: LanceImageToVideo.execute(v, media.KEEP, 9, 1, start=ONE, end=EMPTY)),
        (
            "image1",
            lambda m, c, v: LanceEncodeReferences.execute(
                c, v, {"image0": ONE, "image1": EMPTY}, "In a boat.", "image", media.KEEP
            ),
        ),
        (
            "image1",
            lambda m, c, v: LanceAnswer.execute(
                m, c, {"task": "question", "question": "?"}, 1, {"sampling": "off"}, {"image0": ONE, "image1": EMPTY}
            ),
        ),
        ("image", lambda m, c, v: LanceEnhancePrompt.execute(m, c, "A fox.", 1, {"sampling": "off"}, EMPTY)),
    ],
)
def test_an_empty_batch_is_refused(name, run, lance):
    with pytest.raises(ValueError, match=f"{name} holds no picture"):
        run(*lance)


def test_references_without_any_are_refused(lance):
    with pytest.raises(ValueError, match="There is no reference"):
        LanceEncodeReferences.execute(lance[1], lance[2], {}, "In a boat.", "image", media.KEEP)


def masks_of_edits(lance, pictures: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor | None]:
    *_, latents = LanceEncodeEdit.execute(lance[1], lance[2], pictures, "Make it blue.", media.KEEP, mask=mask).result
    return [latent.get("noise_mask") for latent in latents]


def halves() -> torch.Tensor:
    mask = torch.zeros(2, 64, 96)
    mask[0, :, :48], mask[1, :, 48:] = 1, 1
    return mask


def test_each_picture_has_its_own_mask(lance):
    left, right = (cells[0, 0, 0] for cells in masks_of_edits(lance, torch.rand(2, 64, 96, 3), halves()))
    assert left[:, :3].min() == right[:, 3:].min() == 1 and left[:, 3:].max() == right[:, :3].max() == 0


@pytest.mark.parametrize("pictures", [1, 3])
def test_masks_of_another_number_than_the_pictures_are_refused(pictures, lance):
    with pytest.raises(ValueError, match=f"There are 2 masks, but the number of pictures is {pictures}"):
        masks_of_edits(lance, torch.rand(pictures, 64, 96, 3), halves())


def test_a_mask_without_a_batch_is_one_mask(lance):
    flat = masks_of_edits(lance, torch.rand(2, 64, 96, 3), halves()[0])
    batch = masks_of_edits(lance, torch.rand(2, 64, 96, 3), halves()[:1])
    assert all(torch.equal(a, b) for a, b in zip(flat, batch, strict=True))
    with pytest.raises(ValueError, match="mask is 96x64, but the source is 64x64"):
        masks_of_edits(lance, ONE, halves()[0])


@pytest.mark.parametrize("size", [64, 96])
def test_load_images_mask_of_an_unpainted_picture_limits_nothing(size, lance):
    assert masks_of_edits(lance, torch.rand(2, size, size, 3), torch.zeros(2, 64, 64)) == [None, None]


def test_an_unpainted_mask_of_the_pictures_size_keeps_all_of_it(lance):
    (cells,) = masks_of_edits(lance, torch.rand(1, 96, 96, 3), torch.zeros(1, 96, 96))
    assert cells.max() == 0


@pytest.mark.parametrize("kept", ["first frame", "left half"])
def test_a_run_in_two_parts_keeps_what_one_run_keeps(kept, lance):
    model, clip, _ = lance
    positive, negative = language.encode_pair(clip, "A fox in the snow.", target="video")
    noise, clean = torch.randn(2, 1, 48, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(1, 1, 2, 4, 4)
    mask[(slice(None),) * 2 + ((0,) if kept == "first frame" else (slice(None), slice(None), slice(2)))] = 0
    sigmas = schedule(6, 3.5)
    whole = sample(model, positive, negative, noise, sigmas, latent=clean, mask=mask)
    half = sample(model, positive, negative, noise, sigmas[:4], latent=clean, mask=mask)
    rest = sample(model, positive, negative, torch.zeros_like(noise), sigmas[3:], latent=half, mask=mask)
    places = (mask == 0).expand_as(clean)
    assert (rest - clean)[places].abs().max() < 1e-5
    assert (rest - whole).abs().max() < 1e-4
