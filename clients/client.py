"""Runs a workflow in API format on a ComfyUI server and downloads what it makes. Needs Python alone.

    python clients/client.py api/text_to_image.json --set prompt="A red fox in the snow" --set seed=7 --out pictures
    python clients/client.py api/caption.json --upload image=fox.jpg --server http://192.168.1.2:8188

`--set` changes every input of that name in the workflow, `--set 3.seed=7` that of node 3 alone. As a module: `upload`,
`change`, `run`, `texts` and `files` do the same from your own code.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

SERVER = "http://127.0.0.1:8188"
Prompt = dict[str, dict]  # node id → class_type and inputs


class JobError(Exception):
    """The server refused the job, or a node of it failed: another server would do the same."""


class ServerLost(Exception):
    """The server does not answer, or no longer knows the job: another server may do it."""


def call(url: str, data: bytes | None = None, content_type: str = "application/json") -> bytes:
    """The body that the server answers with. Raises JobError with its own words if it refuses, ServerLost if it is
    gone."""
    request = urllib.request.Request(url, data, {"Content-Type": content_type} if data is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()
    except urllib.error.HTTPError as refusal:
        raise JobError(_reason(refusal)) from None
    except (OSError, http.client.HTTPException) as error:
        raise ServerLost(f"{url} does not answer: {error}") from None


def _reason(refusal: urllib.error.HTTPError) -> str:
    try:
        answer = json.load(refusal)
        nodes = answer.get("node_errors") or {}
        problems = [f"{n['class_type']}: {e['message']}: {e['details']}" for n in nodes.values() for e in n["errors"]]
        return "; ".join(problems) or answer["error"]["message"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{refusal.url}: {refusal.code} {refusal.reason}"


def address(server: str) -> str:
    """The server's URL, however it was written."""
    return (server if "://" in server else f"http://{server}").rstrip("/")


def read(workflow: Path) -> Prompt:
    """A workflow in API format; ValueError for another file."""
    prompt = json.loads(workflow.read_text(encoding="utf-8"))
    if not isinstance(prompt, dict) or not all(isinstance(n, dict) and "class_type" in n for n in prompt.values()):
        raise ValueError(
            "it is not in API format, but in the page's. Take the file of that name in api/, or Export (API)"
        )
    return prompt


def inputs(prompt: Prompt) -> list[tuple[str, str]]:
    """(node id, name) of every input that is not a link."""
    return [(i, name) for i, node in prompt.items() for name, v in node["inputs"].items() if not isinstance(v, list)]


def change(prompt: Prompt, name: str, value: object) -> None:
    """Sets every input of that name which is not a link, or with ID.NAME that of one node; KeyError if there is
    none."""
    found = [(node, key) for node, key in inputs(prompt) if name in (key, f"{node}.{key}")]
    if not found:
        there = ", ".join(f"{node}.{key}" for node, key in inputs(prompt))
        raise KeyError(f"there is no input {name} among {there}")
    for node, key in found:
        prompt[node]["inputs"][key] = value


def upload(server: str, name: str, content: bytes) -> str:
    """Puts a file into the server's input folder and returns the name that Load Image knows it by."""
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{_plain(name)}"'
    body = f"{head}\r\n\r\n".encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return json.loads(call(f"{server}/upload/image", body, f"multipart/form-data; boundary={boundary}"))["name"]


def _plain(name: str) -> str:
    """A file's name that every server can store."""
    return re.sub(r"[^\w. ()-]", "_", name)


def queue(server: str, prompt: Prompt) -> str:
    """Queues a job and returns its id."""
    return json.loads(call(f"{server}/prompt", json.dumps({"prompt": prompt}).encode()))["prompt_id"]


def wait(server: str, job: str, seconds: float = 3600) -> dict:
    """The outputs of a job's nodes, once it is done; node id → kind → items."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        waiting = job.encode() in call(f"{server}/queue")  # asked first: the job may end between the two questions
        entry = json.loads(call(f"{server}/history/{job}")).get(job)
        if entry is None and not waiting:
            raise ServerLost(f"{server} does not know job {job} any more: it was restarted, or the job was deleted")
        if entry is not None and entry["status"]["status_str"] == "success":
            return entry["outputs"]
        if entry is not None:
            messages = dict(entry["status"]["messages"])
            error = messages.get("execution_error") or {"node_type": "job", "exception_message": "interrupted"}
            raise JobError(f"{error['node_type']}: {error['exception_message'].strip()}")
        time.sleep(0.2)
    raise JobError(f"job {job} did not finish in {seconds:.0f} seconds")


def files(server: str, outputs: dict) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file that a job saved."""
    items = [item for node in outputs.values() for kind in node.values() if isinstance(kind, list) for item in kind]
    for item in items:
        if isinstance(item, dict) and item.get("type") == "output":
            where = {key: item[key] for key in ("filename", "subfolder", "type")}
            yield Path(item["filename"]).name, call(f"{server}/view?{urllib.parse.urlencode(where)}")


def texts(outputs: dict) -> list[str]:
    """What a job's text previews show."""
    return [text for node in outputs.values() for text in node.get("text", ()) if isinstance(text, str)]


def run(server: str, prompt: Prompt, seconds: float = 3600) -> dict:
    """Queues a job and waits for it: `wait(queue(prompt))`."""
    return wait(server, queue(server, prompt), seconds)


def setting(text: str) -> tuple[str, object]:
    """NAME=VALUE; the value is a number or true or false where it reads as one."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        parsed = json.loads(value)
    except ValueError:
        return name, value
    return name, parsed if isinstance(parsed, (bool, int, float)) else value


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a workflow in API format and download what it makes.")
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE", dest="settings")
    parser.add_argument(
        "--upload",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a picture or clip for an input",
    )
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for what is downloaded")
    parser.add_argument("--server", default=SERVER, help=f"default: {SERVER}")
    arguments = parser.parse_args()
    server = address(arguments.server)
    try:
        prompt = read(arguments.workflow)
        contents = [(name, Path(str(path)), Path(str(path)).read_bytes()) for name, path in arguments.upload]
    except (OSError, ValueError) as error:
        parser.error(f"{getattr(error, 'filename', None) or arguments.workflow} cannot be read: {error}")
    try:
        for name, value in arguments.settings:
            change(prompt, name, value)
        for name, path, content in contents:
            change(prompt, name, upload(server, path.name, content))
        outputs = run(server, prompt)
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, content in files(server, outputs):
            (arguments.out / name).write_bytes(content)
            print(arguments.out / name)
        for text in texts(outputs):
            print(text)
    except KeyError as error:
        parser.error(f"{arguments.workflow}: {error.args[0]}")
    except (JobError, ServerLost, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
