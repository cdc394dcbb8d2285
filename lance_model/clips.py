"""The frames that the model sees of a clip, from files by their true times.

- A file is decoded twice. The first pass notes the frames' times, the second converts the chosen frames alone: memory
  grows with them, not with the clip's length.
- At a constant rate the choice is the reference's, which counts frames. Screen recordings and phones write frames when
  something moves, and the rate that such a file names may be anything; those are taken by their times.
- Frames are decoded to the numbers that ComfyUI's own video input gives.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import av
import numpy
import torch
from comfy_api.latest import Input, InputImpl

from . import media

NO_FRAMES = "The clip has no frames. Connect one that has some, or trim less of it away."
# ComfyUI decodes these to 8 bits, and all others to floats.
EIGHT_BITS = ("yuvj420p", "yuvj422p", "yuvj444p", "rgb24", "rgba", "pal8")
ALIGNMENT = 32  # pixels; the conversion to floats reads beyond rows of other widths

Window = tuple[float, float]  # of ComfyUI's trimmed clips: the start and the duration in seconds, 0 being all


def sampled(
    video: Input.Video, sample_fps: float = media.FPS, max_seconds: float = media.MAX_SECONDS
) -> tuple[torch.Tensor, float]:
    """The frames [1 + 4k, h, w, 3] of a clip that the model sees, and the clip's length in seconds.

    Raises ValueError for a clip without frames.
    """
    # Newer versions of ComfyUI crop a clip while it is decoded, which its file knows nothing of.
    edited = hasattr(video, "has_pending_frame_edits") and video.has_pending_frame_edits()
    if isinstance(video, InputImpl.VideoFromFile) and not edited:
        return read(video.get_stream_source(), video.get_active_trim_window(), sample_fps, max_seconds)
    components = video.get_components()
    if not components.images.numel():
        raise ValueError(NO_FRAMES)
    rate = float(components.frame_rate)
    return media.sample_frames(components.images, rate, sample_fps, max_seconds), components.images.shape[0] / rate


def read(
    source: str | io.BytesIO, window: Window, sample_fps: float = media.FPS, max_seconds: float = media.MAX_SECONDS
) -> tuple[torch.Tensor, float]:
    """The frames [1 + 4k, h, w, 3] in 8 bits that the model sees of the clip, and the clip's length in seconds.

    `source` is a path or a file's content. Raises ValueError for a file that cannot be read or has no frames.
    """
    try:
        with _opened(source) as stream:
            rate, marks = float(stream.average_rate or 1), _marks(stream, *window)
        if not marks:
            raise ValueError(NO_FRAMES)
        indices, seconds = _choose(numpy.array(marks, dtype=float), rate, sample_fps, max_seconds)
        with _opened(source) as stream:
            return _pictures(_frames(stream, window[0]), indices), seconds
    except av.error.FFmpegError as error:
        raise ValueError(f"The clip cannot be read ({error.strerror}). Convert it to MP4, or load another.") from error


@contextmanager
def _opened(source: str | io.BytesIO) -> Iterator[av.VideoStream]:
    if isinstance(source, io.BytesIO):
        source.seek(0)
    with av.open(source) as container:
        if not container.streams.video:
            raise ValueError("The clip has no pictures, only sound. Connect another.")
        yield container.streams.video[0]


def _frames(stream: av.VideoStream, start: float) -> Iterator[av.VideoFrame]:
    """The frames from `start` on, as ComfyUI takes them; damaged ones are left out."""
    first = int(start / stream.time_base)
    if first:
        stream.container.seek(first, stream=stream)
    for packet in stream.container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        yield from (frame for frame in frames if frame.pts is None or frame.pts >= first)


def _marks(stream: av.VideoStream, start: float, duration: float) -> list[tuple[float | None, float]]:
    """When each frame is shown, and for how long (0 if the file does not say), in seconds."""
    marks, end = [], int((start + duration) / stream.time_base)
    for frame in _frames(stream, start):
        if duration and frame.pts is not None and frame.pts >= end:  # the frame before is shown until then
            return [*marks[:-1], (marks[-1][0], float(end * stream.time_base) - marks[-1][0])] if marks else []
        marks.append((frame.time, float(frame.duration * stream.time_base)))
    return marks


def _choose(marks: numpy.ndarray, rate: float, sample_fps: float, max_seconds: float) -> tuple[list[int], float]:
    """Which frames the model sees, of those with these marks [n, 2], and the clip's length in seconds."""
    total, offsets = len(marks), marks[:, 0] - marks[0, 0]
    sensible = offsets[-1] > 0 and (numpy.diff(offsets) >= 0).all()  # not so where frames have no times, or one
    if not sensible or abs(offsets * rate - numpy.arange(total)).max() <= 1 / 2:
        return media.frame_indices(total, rate, sample_fps, max_seconds), total / rate
    seconds = float(offsets[-1] + (marks[-1, 1] or offsets[-1] / (total - 1)))
    count = media.frame_count(seconds, sample_fps, max_seconds)
    shown_at = numpy.arange(count) * seconds / count
    return (numpy.searchsorted(offsets, shown_at, side="right") - 1).tolist(), seconds


def _pictures(frames: Iterator[av.VideoFrame], indices: list[int]) -> torch.Tensor:
    """The frames at these places, in 8 bits; a place may be named several times."""
    chosen, needed = set(indices), islice(enumerate(frames), indices[-1] + 1)
    pictures = {i: _picture(frame) for i, frame in needed if i in chosen}
    first = pictures[indices[0]].shape
    for picture in pictures.values():
        if picture.shape != first:
            raise ValueError(
                f"The clip changes its size from {first[1]}x{first[0]} to {picture.shape[1]}x{picture.shape[0]}. "
                "Convert it to a clip of one size."
            )
    return torch.stack([pictures[i] for i in indices])


def _picture(frame: av.VideoFrame) -> torch.Tensor:
    """A frame as [h, w, 3] in 8 bits, upright. Transparency is left out."""
    height, width, turns = frame.height, frame.width, round(frame.rotation // 90)
    exact = frame.format.name in EIGHT_BITS
    if not exact and width % ALIGNMENT:
        frame = _aligned(frame)
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24" if exact else "gbrpf32le"))[:height, :width]
    return media.to_bytes(torch.rot90(pixels, turns))


def _aligned(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame with its edges drawn out to the right and below, up to the alignment."""
    right, below = (-n % ALIGNMENT for n in (frame.width, frame.height))
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base),
        graph.add("pad", f"{frame.width + right}:{frame.height + below}:0:0"),
        graph.add("fillborders", f"right={right}:bottom={below}:mode=smear"),
        graph.add("buffersink"),
    ).configure()
    graph.push(frame)
    return graph.pull()
