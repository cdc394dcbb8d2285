"""What a node says while it runs."""

from __future__ import annotations

import html
from collections.abc import Callable

from comfy_api.latest import io
from server import PromptServer


def shown(node_id: str | None) -> Callable[[str], None] | None:
    """Puts a text on the node, on the page that queued the job; None if none did, as for a job from a script."""
    page = None if node_id is None else PromptServer.instance.client_id
    if page is None:
        return None
    # The page takes it for markup, and an answer may be anything.
    return lambda text: PromptServer.instance.send_progress_text(html.escape(text, quote=False), node_id, page)


def tell(node: type[io.ComfyNode], *notes: str | None) -> None:
    """Puts those notes that there are on the running node."""
    show = shown(node.hidden and node.hidden.unique_id)
    if show is not None and any(notes):
        show("\n".join(filter(None, notes)))
