"""A reverse proxy in front of a server, as hosted ComfyUIs have it: a prefix, a login, and 502 when nothing answers
behind it."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Proxy:
    """`with Proxy(port) as proxy`: passes what comes under `prefix` with this Authorization on to a local port.

    Nothing answers under the path `dead`. With `moved_to` it names that address instead.
    """

    def __init__(
        self, port: int, prefix: str = "", authorization: str | None = None, dead: str = "", moved_to: str = ""
    ):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, body = self._answer()
                self.send_response(status)
                if moved_to:
                    self.send_header("Location", moved_to + self.path)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def _answer(self) -> tuple[int, bytes]:
                proxy.asked.append((self.path, self.headers["Authorization"]))
                if moved_to:
                    return 302, b""
                if authorization is not None and self.headers["Authorization"] != authorization:
                    return 401, b"<html>Who are you?</html>"
                if not self.path.startswith(prefix + "/"):
                    return 404, b"<html>Not here</html>"
                sent = self.rfile.read(int(self.headers["Content-Length"] or 0))
                kind = {"Content-Type": self.headers["Content-Type"] or "text/plain"}
                path = self.path.removeprefix(prefix)
                try:
                    behind = http.client.HTTPConnection("127.0.0.1", 9 if path == dead else port, timeout=60)
                    behind.request(self.command, path, sent, kind)
                    answer = behind.getresponse()
                    return answer.status, answer.read()
                except (OSError, http.client.HTTPException):
                    return 502, b"<html>Bad Gateway</html>"

            def log_message(self, *_):
                pass

        proxy = self
        self.asked: list[tuple[str, str | None]] = []  # path and Authorization of each request
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}{prefix}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()
