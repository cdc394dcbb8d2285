"""What a node says while it runs."""

from __future__ import annotations

from collections.abc import Callable

from comfy_api.latest import io
from server import PromptServer

# Some pages take a text for markup, some to the letter. Before a character without width, these are markup to none.
PLAIN = str.maketrans({sign: f"{sign}\N{WORD JOINER}" for sign in "<&"})


def shown(node_id: str | None) -> Callable[[str], None] | None:
    """Puts a text on the node, on the page that queued the job; None if none did, as for a job from a script."""
    page = None if node_id is None else PromptServer.instance.client_id
    if page is None:
        return None
    return lambda text: PromptServer.instance.send_progress_text(text.translate(PLAIN), node_id, page)


def tell(node: type[io.ComfyNode], *notes: str | None) -> None:
    """Puts those notes that there are on the running node."""
    show = shown(node.hidden and node.hidden.unique_id)
    if show is not None and any(notes):
        show("\n".join(filter(None, notes)))
