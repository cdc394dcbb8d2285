"""Runs a workflow in API format on a ComfyUI server and downloads what it makes. Needs Python alone.

    python clients/client.py api/text_to_image.json --set prompt="A red fox in the snow" --set seed=7 --out pictures
    python clients/client.py api/caption.json --upload image=fox.jpg --server http://192.168.1.2:8188

`--list` shows what there is to set. `--set` changes every input of that name in the workflow, `--set KSampler.seed=7`
that of one kind of node, by its class or its title, and `--set 3.seed=7` that of node 3 alone. What a choice brings
with it, as `sampling=on` does a temperature, has its default until it is set. `--seeds 1-8` runs the workflow once with
each of these seeds.

Files keep the folder that the server gave them; one that is there already stays, and the new one is called NAME_2. As a
module: `upload`, `change`, `complete`, `run`, `texts`, `files` and `store` do the same from your own code.

A server behind a login is http://USER:PASSWORD@HOST, or has a token. Better than in the command, which others on the
machine can read, both are kept in the environment: COMFYUI_USER and COMFYUI_PASSWORD, or COMFYUI_TOKEN. What the
address says comes first, then the token. A path in the address is kept: https://HOST/comfy.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import itertools
import json
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

SERVER = "http://127.0.0.1:8188"
USER, PASSWORD, TOKEN = SECRETS = ("COMFYUI_USER", "COMFYUI_PASSWORD", "COMFYUI_TOKEN")
FAULTS_OF_JOBS = (400, 413, 500)  # ComfyUI's own answers to a bad job; others come from what stands before it
ADDRESS = (
    "a server's address is HOST:PORT or http://USER:PASSWORD@HOST:PORT/PATH, "
    "with %2F, %3F and %23 for /, ? and # in a password"
)
Prompt = dict[str, dict]  # node id → class_type and inputs


class JobError(Exception):
    """The server refused the job, or a node of it failed: another server would do the same."""


class ServerLost(Exception):
    """The server does not answer, lets nobody in, or no longer knows the job: another server may do it."""


def call(url: str, data: bytes | None = None, content_type: str = "application/json") -> bytes:
    """The body that the server answers with. Raises JobError with its own words if it refuses, ServerLost if it is
    gone."""
    bare, authorization = _parts(url)
    request = urllib.request.Request(bare, data, {"Content-Type": content_type} if data is not None else {})
    if authorization:
        request.add_unredirected_header("Authorization", authorization)  # which no other host is to see
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            if data is not None and response.url != bare:  # and has lost the data on its way
                raise ServerLost(f"{bare} leads to {response.url}: give that address")
            return response.read()
    except urllib.error.HTTPError as refusal:
        if refusal.code in FAULTS_OF_JOBS:
            raise JobError(_reason(refusal)) from None
        cure = ": give a user and password, or a token" if refusal.code == 401 else ""
        raise ServerLost(f"{bare} answers {refusal.code} {refusal.reason}{cure}") from None
    except (OSError, http.client.HTTPException) as error:
        raise ServerLost(f"{bare} does not answer: {error}") from None


def ask(url: str, data: bytes | None = None, content_type: str = "application/json") -> dict:
    """What `call` brings, read as JSON; ServerLost if it is none, such as a proxy's page."""
    answer = call(url, data, content_type)
    try:
        return json.loads(answer)
    except ValueError:
        raise ServerLost(f"{shown(url)} answers, but not as ComfyUI does") from None


def _reason(refusal: urllib.error.HTTPError) -> str:
    try:
        answer = json.load(refusal)
        nodes = answer.get("node_errors") or {}
        problems = [f"{n['class_type']}: {e['message']}: {e['details']}" for n in nodes.values() for e in n["errors"]]
        return "; ".join(problems) or answer["error"]["message"]
    except (ValueError, LookupError, TypeError, AttributeError, OSError, http.client.HTTPException):
        return f"{refusal.url}: {refusal.code} {refusal.reason}"


def address(server: str) -> str:
    """The server's URL, however it was written; ValueError, which does not repeat it, if it is none."""
    url = re.sub("^ws", "http", server) if "://" in server else f"http://{server}"
    if urllib.parse.urlsplit(_parts(url)[0])[3:] != ("", ""):
        raise ValueError(ADDRESS)
    return url.rstrip("/")


def _parts(url: str) -> tuple[str, str | None]:
    """(the URL without user and password, what goes into the header Authorization)."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # which may be no number
        cut = "@" in parts.path + parts.query + parts.fragment  # by a password's sign that ends the host
        if cut or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError
    except ValueError:
        raise ValueError(ADDRESS) from None
    userinfo, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=host).geturl(), _authorization(userinfo)


def _authorization(userinfo: str) -> str | None:
    user, _, password = map(urllib.parse.unquote, userinfo.partition(":"))
    if not userinfo:
        if token := os.environ.get(TOKEN, "").strip():
            if not re.fullmatch("[!-~]+", token):
                raise ValueError(f"{TOKEN} has a blank or another sign that is in no token")
            return f"Bearer {token}"
        user, password = os.environ.get(USER, ""), os.environ.get(PASSWORD, "")
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}" if user or password else None


def shown(url: str) -> str:
    """The URL without user and password, for messages."""
    return _parts(url)[0]


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


def names(prompt: Prompt, node: str, key: str) -> list[str]:
    """What that input answers to, the plainest last: with its node's id, class or title before it, by itself, and
    without the choice that it belongs to."""
    title = prompt[node].get("_meta", {}).get("title")
    return [*(f"{place}.{key}" for place in (node, prompt[node].get("class_type"), title)), key, key.rpartition(".")[2]]


def change(prompt: Prompt, name: str, value: object) -> None:
    """Sets every input of that name which is not a link, or with NODE.NAME those of one node (its id, class or title);
    KeyError if there is none. What a choice brings with it may be set with the choice: see `complete`."""
    known = [(node, key, names(prompt, node, key)) for node, key in inputs(prompt)]
    found = [place for place in known if name in place[2][:-1]] or [place for place in known if name in place[2]]
    if not found and "." in name:  # an input that a choice brings with it, such as sampling.seed
        choice = name.rpartition(".")[0]
        found = [(node, f"{key}.{name.rpartition('.')[2]}", ()) for node, key, all in known if choice in all]
    if not found:
        there = ", ".join(f"{node}.{key}" for node, key in inputs(prompt))
        raise KeyError(f"there is no input {name} among {there}")
    for node, key, _ in found:
        prompt[node]["inputs"][key] = value


def complete(server: str, prompt: Prompt) -> None:
    """Gives the inputs that a choice brings with it their defaults, where they are left out."""
    kinds = dict.fromkeys(node["class_type"] for node in prompt.values())
    known = {kind: ask(f"{server}/object_info/{urllib.parse.quote(kind)}").get(kind) for kind in kinds}
    for node in prompt.values():
        if known[node["class_type"]]:
            _fill(node["inputs"], "", known[node["class_type"]]["input"])


def _fill(given: dict, prefix: str, described: dict) -> None:
    for name, (kind, *rest) in (
        (n, d) for part in ("required", "optional") for n, d in described.get(part, {}).items()
    ):
        settings = rest[0] if rest else {}
        if prefix and "default" in settings:
            given.setdefault(prefix + name, settings["default"])
        if kind == "COMFY_DYNAMICCOMBO_V3":
            chosen = (option["inputs"] for option in settings["options"] if option["key"] == given.get(prefix + name))
            for inner in chosen:
                _fill(given, f"{prefix}{name}.", inner)


def upload(server: str, name: str, content: bytes) -> str:
    """Puts a file into the server's input folder and returns the name that Load Image knows it by."""
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{_plain(name)}"'
    body = f"{head}\r\n\r\n".encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return ask(f"{server}/upload/image", body, f"multipart/form-data; boundary={boundary}")["name"]


def _plain(name: str) -> str:
    """A file's name that every server can store."""
    return re.sub(r"[^\w. ()-]", "_", name)


def queue(server: str, prompt: Prompt) -> str:
    """Queues a job and returns its id."""
    return ask(f"{server}/prompt", json.dumps({"prompt": prompt}).encode())["prompt_id"]


def wait(server: str, job: str, seconds: float = 3600, tell: Callable[[str], None] = lambda text: None) -> dict:
    """The outputs of a job's nodes, once it is done; node id → kind → items. `tell` gets a few words on how it goes."""
    start = time.monotonic()
    while time.monotonic() < start + seconds:
        queued = ask(f"{server}/queue")  # asked first: the job may end between the two questions
        before = [entry[1] for entry in sorted(queued["queue_pending"], key=lambda entry: entry[0])]
        waiting = job in before or any(entry[1] == job for entry in queued["queue_running"])
        ahead = before.index(job) + len(queued["queue_running"]) if job in before else 0
        tell(f"{time.monotonic() - start:.0f} s, " + (f"{ahead} before it" if ahead else "running"))
        entry = ask(f"{server}/history/{job}").get(job)
        if entry is None and not waiting:
            raise ServerLost(f"{shown(server)} has no job {job} any more: it was restarted, or the job was deleted")
        if entry is not None and entry["status"]["status_str"] == "success":
            return entry["outputs"]
        if entry is not None:
            messages = dict(entry["status"]["messages"])
            error = messages.get("execution_error") or {"node_type": "job", "exception_message": "interrupted"}
            raise JobError(f"{error['node_type']}: {error['exception_message'].strip()}")
        time.sleep(0.2)
    raise JobError(f"job {job} did not finish in {seconds:.0f} seconds")


def files(server: str, outputs: dict) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file that a job saved; the name begins with the folder that the server put it in."""
    items = [item for node in outputs.values() for kind in node.values() if isinstance(kind, list) for item in kind]
    for item in items:
        if isinstance(item, dict) and item.get("type") == "output":
            where = {key: item[key] for key in ("filename", "subfolder", "type")}
            path = f"{item['subfolder']}/{item['filename']}".replace("\\", "/")
            name = "/".join(part.replace(":", "_") for part in path.split("/") if part.strip("."))  # leads nowhere else
            yield name, call(f"{server}/view?{urllib.parse.urlencode(where)}")


def store(folder: Path, name: str, content: bytes) -> Path:
    """Writes a file under that name, or as NAME_2, NAME_3 … where one is there already; where it went."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for i in itertools.count(1):
        free = path if i == 1 else path.with_stem(f"{path.stem}_{i}")
        try:
            with free.open("xb") as file:
                file.write(content)
            return free
        except FileExistsError:
            continue


def texts(outputs: dict) -> list[str]:
    """What a job's text previews show."""
    return [text for node in outputs.values() for text in node.get("text", ()) if isinstance(text, str)]


def run(server: str, prompt: Prompt, seconds: float = 3600) -> dict:
    """Queues a job and waits for it: `wait(queue(prompt))`."""
    return wait(server, queue(server, prompt), seconds)


def numbers(text: str) -> list[int]:
    """1-4,9 → 1, 2, 3, 4, 9."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1-8 or 3,5,7")
    spans = [part.partition("-") for part in text.split(",")]
    return [i for first, _, last in spans for i in range(int(first), int(last or first) + 1)]


def listed(prompt: Prompt) -> Iterator[str]:
    """What there is to set, as --set takes it, and what it is now."""
    for node, key in inputs(prompt):
        title = prompt[node].get("_meta", {}).get("title", prompt[node]["class_type"])
        yield f"{node}.{key}={json.dumps(prompt[node]['inputs'][key], ensure_ascii=False)}  ({title})"


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


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", type=Path)
    parser.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="change an input, by NAME or NODE.NAME; --list shows them",
    )
    parser.add_argument("--list", action="store_true", help="show what --set can change, and run nothing")
    parser.add_argument("--seeds", type=numbers, metavar="1-8", help="run it once with each of these seeds")
    parser.add_argument(
        "--upload",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a picture or clip for an input",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("."), help="folder for what is downloaded; no file in it is overwritten"
    )
    parser.add_argument("--server", default=SERVER, help=f"default: {SERVER}")
    parser.add_argument("--token", help=f"sent as a bearer token; default: {TOKEN} of the environment")
    return parser


def results(server: str, prompt: Prompt, seeds: list[int] | None) -> Iterator[dict]:
    """The outputs of the job, or of one for each seed; all are queued before the first is waited for."""
    jobs = []
    for seed in seeds or [None]:
        if seed is not None:
            change(prompt, "seed", seed)
        jobs.append(queue(server, prompt))

    def tell(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    for i, job in enumerate(jobs):
        outputs = wait(server, job, tell=lambda text, i=i: tell(f"{i + 1} of {len(jobs)}: {text} "))
        tell("")
        yield outputs


def main() -> int:
    parser = options()
    arguments = parser.parse_args()
    try:
        if arguments.token is not None:
            if "@" in arguments.server:
                raise ValueError("--server has a user and --token is given: one of them is enough")
            os.environ[TOKEN] = arguments.token
        server = address(arguments.server)
    except ValueError as error:
        parser.error(str(error))
    try:
        prompt = read(arguments.workflow)
        contents = [(name, Path(str(path)), Path(str(path)).read_bytes()) for name, path in arguments.upload]
    except (OSError, ValueError) as error:
        parser.error(f"{getattr(error, 'filename', None) or arguments.workflow} cannot be read: {error}")
    try:
        for name, value in arguments.settings:
            change(prompt, name, value)
        if arguments.list:
            print(*listed(prompt), sep="\n")
            return 0
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, path, content in contents:
            change(prompt, name, upload(server, path.name, content))
        complete(server, prompt)
        for outputs in results(server, prompt, arguments.seeds):
            for name, content in files(server, outputs):
                print(store(arguments.out, name, content))
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
