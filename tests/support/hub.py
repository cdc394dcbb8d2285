"""A hub of models on this machine: HEAD and GET on /REPOSITORY/resolve/main/FILE as the Hugging Face hub answers them,
its large files on another server, behind a redirect. It can be told to misbehave."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "8f2b3a4c5d6e7f8091a2b3c4d5e6f708192a3b4c"
LARGE = 1000  # bytes, from which on a file is stored elsewhere


@dataclass
class Hub:
    """`files` by their names in `repository`. `requests` are those it got: method, path and Range."""

    repository: str
    files: dict[str, bytes]
    cuts: dict[str, list[int]] = field(default_factory=dict)  # bytes after which each next answer breaks off
    hashes: dict[str, str] = field(default_factory=dict)  # wrong ones
    sizes: dict[str, int] = field(default_factory=dict)  # wrong ones
    ranges: bool = True
    is_hub: bool = True  # or a page that wants a login
    status: int | None = None  # of every answer
    while_sending: Callable[[str, int], None] = lambda name, sent: None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.store = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def sent(self, name: str) -> list[str | None]:
        """The ranges of a file for which it was asked."""
        return [part for method, path, part in self.requests if method == "GET" and path.endswith(f"store/{name}")]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """A client that went away is no error here."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.hub, self.path
        hub.requests.append((self.command, path, self.headers["Range"]))
        if hub.status is not None:
            return self.head(hub.status, {})
        if not hub.is_hub:
            return self.head(200, {"ETag": '"page"'}, b"<!doctype html>Log in first")
        start = f"/{hub.repository}/resolve/main/"
        name = path.removeprefix("/store/").removeprefix(start)
        content = hub.files.get(name)
        if content is None or not path.startswith((start, "/store/")):
            code = "EntryNotFound" if path.startswith(start) else "RepoNotFound"
            return self.head(404, {"X-Error-Code": code, "X-Error-Message": "not found"})
        if path.startswith("/store/"):
            return self.store(name, content)
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if len(content) < LARGE:
            git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            return self.head(200, headers | {"ETag": f'"{hub.hashes.get(name, git)}"'}, content)
        digest = hub.hashes.get(name, hashlib.sha256(content).hexdigest())
        size = hub.sizes.get(name, len(content))
        headers |= {"X-Linked-Size": str(size), "X-Linked-Etag": f'"{digest}"', "ETag": f'"{COMMIT}"'}
        self.head(302, headers | {"Location": f"{hub.store}/store/{name}"})

    def store(self, name: str, content: bytes) -> None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "") if self.hub.ranges else None
        first = int(found[1]) if found else 0
        if first >= len(content):
            return self.head(416, {"Content-Range": f"bytes */{len(content)}"})
        headers = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if found else {}
        cuts = self.hub.cuts.get(name)
        end = first + cuts.pop(0) if cuts else len(content)
        self.head(206 if found else 200, headers | {"Content-Length": str(len(content) - first)})
        for at in range(first, min(end, len(content)), 1 << 16):
            self.wfile.write(content[at : min(at + (1 << 16), end)])
            self.wfile.flush()
            self.hub.while_sending(name, at)
        self.close_connection = end < len(content)

    def head(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET" and content:
            self.wfile.write(content)
