"""Lance's official checkpoints from the Hugging Face hub. Each file is whole and has the hub's hash, or is not there.

A file grows beside its place, as NAME.HASH.partial, where a later download goes on. Everything comes over plain HTTP:
the hub's faster ways do not go on where they stopped. Knows nothing of ComfyUI.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from .checkpoint import VAE_FILES, VISION_FILES, CheckpointError, find_beside
from .found import CLIPS, PICTURES, WEIGHTS

REPOSITORY = "bytedance-research/Lance"
GIGABYTES = {PICTURES: 16.5, CLIPS: 18.3}  # with the vision encoder and the VAE
VISION = "Qwen2.5-VL-ViT"
VAE = "Wan2.2_VAE.pth"

CHUNK = 1 << 18  # bytes, between two looks at whether the user has had enough
WAITS = (1, 2, 4, 8, 16)  # seconds before each try that follows one which brought nothing
AGAIN = "Run it again: what has come is kept"
BY_HAND = f"download it by hand from https://huggingface.co/{REPOSITORY} into models/lance"
# The HTTP library changes with the version of huggingface_hub; its errors are OSErrors or have this base.
NETWORK = (OSError, HfHubHTTPError.__mro__[1])
PASSING = (408, 429, 500, 502, 503, 504)  # HTTP status codes that another try may not meet
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)

Progress = Callable[[int, int], None]  # bytes that are there, and of all; an error that it raises ends the download


@dataclass(frozen=True)
class Remote:
    """A file on the hub. `hash` is its SHA-256, or for small files the SHA-1 that Git gives it."""

    name: str
    url: str
    size: int
    hash: str


def needed(model: str, lance: Path, vae: Path, folders: Iterable[Path] = ()) -> dict[str, Path]:
    """Name in the repository → place, for the files of `model` that are not there. What stands for the model comes
    last, so that where it is, all is."""
    place, vit = lance / model / WEIGHTS, lance / VISION
    files = {}
    if find_beside(place, VISION_FILES, folders) is None:
        files |= {f"{VISION}/{name}": vit / name for name in ("config.json", "vit.safetensors")}
    if find_beside(place, VAE_FILES, (*folders, vae)) is None:
        files[VAE] = vae / VAE
    files[f"{model}/{WEIGHTS}"] = place
    return {name: path for name, path in files.items() if not path.exists()}


def download(model: str, lance: Path, vae: Path, folders: Iterable[Path], progress: Progress) -> Path:
    """The path of the official `model`, a key of GIGABYTES, in the folder `lance`, once it is there.

    What is missing comes from the hub, a VAE into the folder `vae`; vision encoder and VAE are sought in `folders`
    first. Raises CheckpointError, a sentence for the user.
    """
    files = needed(model, lance, vae, folders)
    with _told(model):
        lance.mkdir(parents=True, exist_ok=True)
        with FileLock(str(lance / "download.lock"), timeout=0):
            remote = {place: _ask(model, name) for name, place in files.items()}
            _check_room(model, remote)
            total, before = sum(file.size for file in remote.values()), 0
            for place, file in remote.items():
                _fetch(file, place, lambda done, before=before: progress(before + done, total))
                before += file.size
    return lance / model / WEIGHTS


def _ask(model: str, name: str) -> Remote:
    """What the hub, or the mirror that HF_ENDPOINT names, says of a file."""
    url = hf_hub_url(REPOSITORY, name)
    try:
        get_session()
    except (ValueError, ImportError) as error:
        raise CheckpointError(
            f"{model} cannot be downloaded: the proxy of HTTPS_PROXY or ALL_PROXY cannot be used ({error}). "
            "Correct that setting and start ComfyUI again."
        ) from None
    found = get_hf_file_metadata(url, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    digits = (found.etag or "").lower()
    if found.size is None or len(digits) not in (40, 64) or set(digits) - set("0123456789abcdef"):
        raise CheckpointError(
            f"{model} cannot be downloaded: what answers at {_host()} is no Hugging Face hub, as it gives no size and "
            f"hash for {name}. Check HF_ENDPOINT, and whether the network wants a login in the browser first."
        )
    return Remote(name, url, found.size, digits)


def _check_room(model: str, files: dict[Path, Remote]) -> None:
    """Raises CheckpointError if a disk has no room for what is still to come."""
    needs: dict[int, tuple[Path, int]] = {}
    for place, file in files.items():
        folder = next(folder for folder in place.parents if folder.is_dir())
        partial = _partial(file, place)
        there = partial.stat().st_size if partial.exists() else 0
        device = folder.stat().st_dev
        first, bytes_ = needs.get(device, (folder, 0))
        needs[device] = first, bytes_ + max(file.size - there, 0)
    for folder, bytes_ in needs.values():
        free = shutil.disk_usage(folder).free
        if free < bytes_:
            raise CheckpointError(
                f"{model} cannot be downloaded: {folder} has {free / 1e9:.1f} GB free, and {bytes_ / 1e9:.1f} GB are "
                "needed. Make room there, or name a larger disk in extra_model_paths.yaml."
            )


def _partial(file: Remote, place: Path) -> Path:
    return place.with_name(f"{place.name}.{file.hash[:16]}.partial")


def _fetch(file: Remote, place: Path, progress: Callable[[int], None]) -> None:
    """A file from the hub in its place. `progress` hears of the bytes that are there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(file, place)
    for old in place.parent.glob(f"{place.name}.*.partial"):
        if old != partial:  # of a version that the hub has no more
            old.unlink()
    with partial.open("a+b") as out:
        _fill(file, out, progress)
        out.flush()
        os.fsync(out.fileno())
        size, found = out.tell(), _hash(file, out, progress)
    if size != file.size or found != file.hash:
        partial.unlink()
        wrong = "hash" if size == file.size else f"size ({size:,} bytes instead of {file.size:,})"
        raise CheckpointError(
            f"{file.name} has come from {_host()} with a wrong {wrong} and was thrown away. Run it again; if that does "
            "not help, the fault is there or on the way: try without a mirror or proxy."
        )
    partial.replace(place)


def _fill(file: Remote, out, progress: Callable[[int], None]) -> None:
    """Appends to `out` what it lacks, in as many tries as bring something."""
    failures = 0
    while (start := out.tell()) < file.size:
        progress(start)
        cause = "the connection broke off"
        try:
            with _body(file.url, start) as (goes_on, chunks):
                if not goes_on:
                    out.seek(0)
                    out.truncate()
                for chunk in chunks:
                    out.write(chunk)
                    progress(out.tell())
                    if out.tell() > file.size:
                        return
        except NETWORK as error:
            status = _status(error)
            if status == 416:  # the hub's file ends before
                return
            if _is_final(error) or (status is not None and status not in PASSING):
                raise
            cause = error
        out.flush()
        failures = 0 if out.tell() > start else failures + 1
        if failures > len(WAITS):
            raise cause if isinstance(cause, Exception) else ConnectionError(cause)
        _wait(WAITS[max(failures - 1, 0)], lambda: progress(out.tell()))


@contextmanager
def _body(url: str, start: int) -> Iterator[tuple[bool, Iterator[bytes]]]:
    """Whether the server goes on at the byte `start`, and the bytes from there, else from the beginning."""
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    session, timeout = get_session(), constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(session.stream):
        with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            hf_raise_for_status(response)
            yield response.status_code == 206 or not start, response.iter_bytes(CHUNK)
    else:  # huggingface_hub before 1.0
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            hf_raise_for_status(response)
            yield response.status_code == 206 or not start, response.iter_content(CHUNK)


def _hash(file: Remote, out, progress: Callable[[int], None]) -> str:
    if len(file.hash) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    out.seek(0)
    while chunk := out.read(1 << 24):
        digest.update(chunk)
        progress(file.size)
    return digest.hexdigest()


def _wait(seconds: float, look: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        look()
        time.sleep(0.1)


# ---- What went wrong, in a sentence ----------------------------------------------------------------------------------


def _host() -> str:
    return urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT


def _proxy() -> str | None:
    """Host and port of the proxy that stands before the hub, without the password that may be in its address."""
    if urllib.request.proxy_bypass(_host()):
        return None
    proxies = urllib.request.getproxies()
    address = proxies.get(urlsplit(constants.ENDPOINT).scheme) or proxies.get("all")
    return address and address.rpartition("@")[2].rpartition("://")[2].rstrip("/")


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_final(error: Exception) -> bool:
    """Whether another try would meet the same."""
    return isinstance(error, OfflineModeIsEnabled) or getattr(error, "errno", None) in DISK


@contextmanager
def _told(model: str) -> Iterator[None]:
    """Turns the errors of the hub, the network and the disk into CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Timeout:
        raise CheckpointError(
            f"{model} cannot be downloaded: another program is downloading into the same folder. Wait until it is "
            "done and run it again."
        ) from None
    except NETWORK as error:
        raise CheckpointError(f"{model} cannot be downloaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    status, host, proxy = _status(error), _host(), _proxy()
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set. Start ComfyUI without it, or {BY_HAND}."
    if getattr(error, "errno", None) in DISK:
        where = f"{error.filename} cannot be written" if error.filename else "the disk takes no more"
        return f"{where} ({error.strerror}). Mend that and run it again: what has come is kept."
    if status == 404:
        return f"{host} has no such file any more, as it was moved or renamed. Update these nodes, or {BY_HAND}."
    if status in (401, 403):
        return (
            f"{host} refuses it ({status}): the files were moved or closed, a proxy forbids it, or a wrong token is in "
            f"HF_TOKEN. Correct that, or {BY_HAND}."
        )
    if status == 407 or any("Proxy" in base.__name__ for base in type(error).__mro__):
        return (
            f"the proxy {proxy} refuses the way to {host} ({status or _short(error)}). "
            f"Check HTTPS_PROXY, with its user and password, or {BY_HAND}."
        )
    if status is not None:
        return f"{host} is in trouble ({status}). {AGAIN}, and it goes on from there."
    way = f"{host} cannot be reached through the proxy {proxy}" if proxy else f"{host} cannot be reached"
    return f"{way} ({_short(error)}). Check the network. {AGAIN}; HF_ENDPOINT names a mirror."


def _short(error: Exception) -> str:
    """The first line of what is at the root of an error; some have no words but their name."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120].rstrip(".")
