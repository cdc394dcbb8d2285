"""A run as the page sees it: queued over HTTP, followed on the websocket."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from PIL import Image

ENDS = {"execution_success", "execution_error", "execution_interrupted"}
TEXT, PREVIEW_WITH_METADATA = 3, 4  # the binary events' numbers in ComfyUI's protocol.py


@dataclass
class Run:
    prompt_id: str = ""
    events: list[tuple[str, dict]] = field(default_factory=list)
    previews: list[Image.Image] = field(default_factory=list)
    words: list[str] = field(default_factory=list)  # what nodes showed while they ran
    overheard: int = 0  # pictures and words that a second page got

    def of_type(self, name: str) -> list[dict]:
        return [data for event, data in self.events if event == name]

    @property
    def outputs(self) -> dict[str, dict]:
        """What each output node gave the page."""
        return {data["node"]: data["output"] for data in self.of_type("executed") if data["output"]}

    def saved(self) -> list[dict]:
        """filename, subfolder and type of what the save nodes wrote."""
        items = [item for output in self.outputs.values() for items in output.values() for item in items]
        return [item for item in items if isinstance(item, dict) and item.get("type") == "output"]

    @property
    def end(self) -> str:
        return self.events[-1][0]

    @property
    def error(self) -> str:
        return self.events[-1][1]["exception_message"].strip()


Condition = Callable[[str, dict], bool]  # of an event and its data


def watch(url: str, prompt: dict, interrupt_when: Condition | None = None, timeout: float = 120) -> Run:
    """Run a prompt to its end and return all that the page is told. POST /interrupt at the event that asks for it."""
    return asyncio.run(asyncio.wait_for(_watch(url, prompt, interrupt_when), timeout))


async def _watch(url: str, prompt: dict, interrupt_when: Condition | None) -> Run:
    client, run = uuid.uuid4().hex, Run()
    async with (
        aiohttp.ClientSession(url) as session,
        session.ws_connect(f"/ws?clientId={client}") as socket,
        session.ws_connect(f"/ws?clientId={uuid.uuid4().hex}") as other,
    ):
        await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        body = {"prompt": prompt, "client_id": client, "extra_data": {"preview_method": "latent2rgb"}}
        async with session.post("/prompt", json=body, raise_for_status=True) as response:
            run.prompt_id = (await response.json())["prompt_id"]
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                kind, length = struct.unpack(">II", message.data[:8])
                if kind == TEXT:  # here the length is that of the node's id
                    run.words.append(message.data[8 + length :].decode())
                if kind == PREVIEW_WITH_METADATA:
                    run.previews.append(Image.open(io.BytesIO(message.data[8 + length :])))
                continue
            event = json.loads(message.data)
            if event["data"].get("prompt_id") != run.prompt_id:
                continue
            run.events.append((event["type"], event["data"]))
            if event["type"] in ENDS:
                run.overheard = await _overheard(other)
                return run
            if interrupt_when is not None and interrupt_when(*run.events[-1]):
                interrupt_when = None
                await session.post("/interrupt", json={})
    raise ConnectionError("The server closed the websocket before the run's end")


async def _overheard(socket: aiohttp.ClientWebSocketResponse) -> int:
    """How many pictures and words have come."""
    count = 0
    try:
        while True:
            count += (await socket.receive(timeout=0.2)).type == aiohttp.WSMsgType.BINARY
    except TimeoutError:
        return count
