"""Whether what meets at a node's inputs belongs together; if not, one sentence."""

from __future__ import annotations


def check(connected: object, attribute: str, kind: type, socket: str) -> None:
    """What is `connected` to a socket has to hold Lance's own `kind`. A loader's file may have had none of it."""
    held = getattr(connected, attribute, None)
    if held is None:
        raise ValueError(f"This {socket} is missing in its loader's file. Connect the {socket} of Load Lance.")
    if not isinstance(held, kind):
        raise ValueError(
            f"This {socket} is another model's ({type(held).__name__}). Connect the {socket} of Load Lance."
        )


def check_width(clip: int, model: int) -> None:
    if clip != model:
        raise ValueError(
            f"The prompt was encoded with a Lance of width {clip}, but this MODEL has width {model}. "
            "Take MODEL and CLIP from the same Load Lance node."
        )
