"""A real ComfyUI server with the plugin in it, for the demo, the tests and the workflow tools.

Needs COMFYUI_PATH (see host.sh) and runs on the Python that runs this.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from . import tiny_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 180


def cache_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "comfyui-lance"
    return Path(os.environ.get("LANCE_HOST_DIR") or cache)


def tiny_weights() -> Path:
    """The tiny seeded checkpoint in the official layout, made once."""
    folder = cache_folder() / f"tiny-{tiny_checkpoint.VERSION}"
    tiny_checkpoint.write(folder)
    return folder


class ComfyServer:
    """Starts ComfyUI on a free local port over a base folder of its own and stops it again: `with ComfyServer() as
    server`.

    `weights` is a folder in the official layout; without it there is the demonstration model alone. `custom_nodes` come
    beside the plugin, `arguments` go to main.py.
    """

    def __init__(
        self,
        weights: Path | None = None,
        threads: int | None = 1,
        custom_nodes: tuple[Path, ...] = (),
        arguments: tuple[str, ...] = (),
    ):
        self.weights = weights
        self.arguments = arguments
        self.custom_nodes = custom_nodes
        # One, as small layers gain nothing from threads, and wait long for them on a busy machine.
        self.environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ComfyServer:
        self.base = Path(tempfile.mkdtemp(prefix="lance-comfyui-"))
        for folder in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base / folder).mkdir()
        (self.base / "custom_nodes" / "comfyui-lance").symlink_to(REPOSITORY)
        for path in self.custom_nodes:
            (self.base / "custom_nodes" / path.name).symlink_to(path)
        if self.weights is not None:
            (self.base / "models" / "lance").symlink_to(Path(self.weights).resolve())
        self.log = self.base / "server.log"
        self.start()
        return self

    def start(self) -> None:
        """Once more after `process` was killed: on the same port, over the same base folder."""
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.base,
                env=os.environ | self.environment,
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.__exit__()
            raise

    def _command(self) -> list[str]:
        import torch

        command = [sys.executable, f"{os.environ['COMFYUI_PATH']}/main.py", "--listen", "127.0.0.1"]
        command += [
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base),
            "--database-url",
            "sqlite:///:memory:",
        ]
        command += ["--disable-auto-launch", "--disable-api-nodes", "--preview-method", "latent2rgb"]
        command += self.arguments
        return command if torch.cuda.is_available() else [*command, "--cpu", "--use-pytorch-cross-attention"]

    def _wait_until_up(self) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self._get("/system_stats")
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"ComfyUI did not start. Its last words:\n{self.last_words()}") from None
                time.sleep(0.2)

    def __exit__(self, *error) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.base, ignore_errors=True)

    def last_words(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _get(self, path: str) -> dict:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return json.load(response)

    def object_info(self) -> dict:
        return self._get("/object_info")

    def queue(self, prompt: dict) -> str:
        """Queues an API-format prompt and returns its id; RuntimeError with ComfyUI's own words if it is refused."""
        request = urllib.request.Request(f"{self.url}/prompt", json.dumps({"prompt": prompt}).encode())
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["prompt_id"]
        except urllib.error.HTTPError as refusal:
            raise RuntimeError(_refusal(json.load(refusal))) from None

    def wait(self, prompt_id: str, timeout: float = 3600) -> dict:
        """The history entry of a finished prompt; RuntimeError with the node and its message if it failed."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                entry = self._get(f"/history/{prompt_id}").get(prompt_id)
            except OSError as error:
                raise RuntimeError(f"ComfyUI does not answer ({error}). Its last words:\n{self.last_words()}") from None
            if entry is not None and entry["status"]["completed"]:
                return entry
            if entry is not None and entry["status"]["status_str"] == "error":
                details = next(m[1] for m in entry["status"]["messages"] if m[0].startswith("execution_"))
                details = next((m[1] for m in entry["status"]["messages"] if m[0] == "execution_error"), details)
                raise RuntimeError(
                    f"{details.get('node_type')}: {details.get('exception_message', 'interrupted')}".strip()
                )
            time.sleep(0.1)
        raise RuntimeError(f"The prompt did not finish in {timeout:.0f} seconds.")

    def wait_until_idle(self) -> None:
        """Until what was queued, by the page as well, has run."""
        while self._get("/prompt")["exec_info"]["queue_remaining"]:
            time.sleep(0.1)

    def outputs(self, entry: dict) -> list[Path]:
        """Files that a prompt has written to ComfyUI's output folder."""
        items = [item for node in entry["outputs"].values() for items in node.values() for item in items]
        files = [item for item in items if isinstance(item, dict) and item.get("type") == "output"]
        return [self.base / "output" / item["subfolder"] / item["filename"] for item in files]


def _refusal(answer: dict) -> str:
    problems = [
        f"{node['class_type']}: {error['message']} ({error['details']})"
        for node in answer.get("node_errors", {}).values()
        for error in node["errors"]
    ]
    return "; ".join(problems) or answer["error"]["message"]
