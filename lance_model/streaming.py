"""Keys and values that wait in the computer's memory, and how they come to the device again, one layer ahead."""

from __future__ import annotations

from collections.abc import Iterator

import comfy.model_management
import torch

KeyValue = tuple[torch.Tensor, torch.Tensor]  # [1, tokens, kv_heads, head_dim] each
KeyValues = list[KeyValue]  # one for each layer

HOST = torch.device("cpu")


class Waiting:
    """Tensors that wait in the computer's memory, pinned where ComfyUI pins, until they are released."""

    def __init__(self):
        self._pinned: list[torch.Tensor] = []

    def offload(self, x: torch.Tensor) -> torch.Tensor:
        """A copy of x that waits."""
        host = torch.empty(x.shape, dtype=x.dtype, device=HOST)
        if comfy.model_management.pin_memory(host):
            self._pinned.append(host)
        return host.copy_(x)

    def release(self) -> None:
        while self._pinned:
            comfy.model_management.unpin_memory(self._pinned.pop())


def layers(pieces: list[KeyValues], count: int, device: torch.device) -> Iterator[list[KeyValue]]:
    """For each of `count` layers the keys and values of all `pieces`, on the device.

    While a layer is computed, what the next one needs is copied on a stream of its own, where the device has one.
    """
    if all(x.device == device for piece in pieces for x in piece[0]):
        for i in range(count):
            yield [piece[i] for piece in pieces]
        return
    ahead = _start(pieces, 0, device)
    for i in range(count):
        stream, here = ahead
        comfy.model_management.sync_stream(device, stream)
        ahead = _start(pieces, i + 1, device) if i + 1 < count else None
        yield here
        if stream is not None:  # the stream's memory may be written again only when this layer has been computed
            stream.wait_stream(comfy.model_management.current_stream(device))


def _start(pieces: list[KeyValues], i: int, device: torch.device):
    """Begins to copy a layer's keys and values; the stream that does, and the copies."""
    stream = comfy.model_management.get_offload_stream(device)
    non_blocking = comfy.model_management.device_supports_non_blocking(device)

    def copy(x: torch.Tensor) -> torch.Tensor:
        return comfy.model_management.cast_to(x, None, device, non_blocking=non_blocking, stream=stream)

    return stream, [tuple(map(copy, piece[i])) for piece in pieces]
