"""Lance's checkpoints come from a hub: whole and checked, going on where they stopped, and in a sentence where not."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from comfyui_lance.lance_model import download
from comfyui_lance.lance_model.checkpoint import CheckpointError
from huggingface_hub import constants
from support.hub import Hub

REPOSITORY = Path(__file__).resolve().parent.parent
MODEL, VIT, CONFIG, VAE = (
    "Lance_3B/model.safetensors",
    "Qwen2.5-VL-ViT/vit.safetensors",
    "config.json",
    "Wan2.2_VAE.pth",
)
FILES = {
    MODEL: bytes(range(256)) * 8192,  # 2 MiB
    "Lance_3B_Video/model.safetensors": b"video" * 1000,
    "Lance_3B/ema.safetensors": b"not needed" * 1000,
    VIT: b"vision" * 1000,
    "Qwen2.5-VL-ViT/config.json": b'{"depth": 32}',
    VAE: b"autoencoder" * 1000,
}
NEEDED = {MODEL, VIT, "Qwen2.5-VL-ViT/config.json"}


class Interrupted(BaseException):
    pass


@pytest.fixture()
def hub(monkeypatch):
    with Hub(download.REPOSITORY, dict(FILES)) as hub:
        at(hub.url, monkeypatch)
        monkeypatch.setattr(download, "WAITS", (0, 0))
        yield hub
        huggingface_hub.utils.close_session()


def at(url: str, monkeypatch, **environment: str) -> None:
    """The hub's library as it is when it starts with HF_ENDPOINT=url, and with these proxies alone."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    huggingface_hub.utils.close_session()


def get(folder: Path, progress=lambda done, total: None, model: str = "Lance_3B") -> Path:
    return download.download(model, folder / "lance", folder / "vae", (), progress)


def there(folder: Path) -> dict[str, bytes]:
    """What is there under its final name, as the repository calls it."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    skipped = (".partial", ".lock")
    named = {str(Path(*name.parts[1:])): path for name, path in files.items() if path.suffix not in skipped}
    return {name: path.read_bytes() for name, path in named.items()}


def partials(folder: Path) -> list[Path]:
    return list(folder.rglob("*.partial"))


def refusal(folder: Path, *words: str) -> str:
    with pytest.raises(CheckpointError) as refused:
        get(folder)
    message = str(refused.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 400
    assert [word for word in words if word not in message] == [], message
    return message


def test_what_is_needed_comes_and_no_more(hub, tmp_path):
    seen = []
    path = get(tmp_path, lambda *bytes_: seen.append(bytes_))
    assert path == tmp_path / "lance" / MODEL and (tmp_path / "vae" / VAE).is_file()
    assert there(tmp_path) == {name: FILES[name] for name in (*NEEDED, VAE)} and not partials(tmp_path)
    total = sum(len(FILES[name]) for name in (*NEEDED, VAE))
    assert seen == sorted(seen) and seen[-1] == (total, total) and len(seen) > 8


def test_the_second_time_nothing_is_asked_for(hub, tmp_path):
    get(tmp_path)
    hub.requests.clear()
    get(tmp_path)
    assert hub.requests == []


def test_parts_that_are_there_stay(hub, tmp_path):
    """The other checkpoint shares them, and ComfyUI's own VAE is as good."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "wan2.2_vae.safetensors").write_bytes(b"own")
    (tmp_path / "lance" / "Qwen2.5-VL-ViT").mkdir(parents=True)
    (tmp_path / "lance" / VIT).write_bytes(b"own")
    path = get(tmp_path, model="Lance_3B_Video")
    assert path.read_bytes() == FILES["Lance_3B_Video/model.safetensors"]
    assert {path for _, path, _ in hub.requests if "/store/" in path} == {"/store/Lance_3B_Video/model.safetensors"}


def test_a_connection_that_breaks_off_is_taken_up_again(hub, tmp_path):
    chunk = download.CHUNK
    hub.cuts[MODEL] = [2 * chunk, chunk, 0]
    get(tmp_path)
    assert there(tmp_path)[MODEL] == FILES[MODEL]
    assert hub.sent(MODEL) == [None, *(f"bytes={n * chunk}-" for n in (2, 3, 3))]


def test_a_server_without_ranges_begins_anew(hub, tmp_path):
    hub.cuts[MODEL], hub.ranges = [500_000], False
    get(tmp_path)
    assert there(tmp_path)[MODEL] == FILES[MODEL]


def test_an_interrupt_leaves_no_half_file_and_a_later_run_goes_on(hub, tmp_path):
    def stop(done: int, total: int) -> None:
        if done > 1_000_000:
            raise Interrupted

    with pytest.raises(Interrupted):
        get(tmp_path, stop)
    assert there(tmp_path).keys() == {*NEEDED, VAE} - {MODEL}
    (partial,) = partials(tmp_path)
    kept = partial.stat().st_size
    assert 900_000 < kept < 1_500_000
    get(tmp_path)
    assert there(tmp_path)[MODEL] == FILES[MODEL] and not partials(tmp_path)
    assert hub.sent(MODEL)[1] == f"bytes={kept}-"


def test_an_interrupt_while_it_waits_counts(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WAITS", (60,))
    hub.cuts[MODEL] = [300_000]
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if calls.count(done) > 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        get(tmp_path, stop)


def test_the_partial_file_of_another_version_goes(hub, tmp_path):
    hub.cuts[MODEL] = [500_000, 0, 0, 0]
    refusal(tmp_path, "Lance_3B cannot be downloaded", "127.0.0.1", "what has come is kept")
    hub.files[MODEL] = FILES[MODEL][::-1]
    get(tmp_path)
    assert there(tmp_path)[MODEL] == FILES[MODEL][::-1] and not partials(tmp_path)


@pytest.mark.parametrize("name", [MODEL, "Qwen2.5-VL-ViT/config.json"])
def test_a_wrong_hash_is_refused(name, hub, tmp_path):
    hub.hashes[name] = "0" * (64 if name == MODEL else 40)
    refusal(tmp_path, f"{name} has come from 127.0.0.1 with a wrong hash", "Run it again")
    assert name not in there(tmp_path) and not partials(tmp_path)


@pytest.mark.parametrize("size", [len(FILES[MODEL]) - 5, len(FILES[MODEL]) + 5])
def test_a_wrong_size_is_refused(size, hub, tmp_path):
    hub.sizes[MODEL] = size
    refusal(tmp_path, f"{MODEL} has come from 127.0.0.1 with a wrong size ({len(FILES[MODEL]):,} bytes instead of")
    assert MODEL not in there(tmp_path) and not partials(tmp_path)


def test_a_file_that_has_moved_is_told(hub, tmp_path):
    del hub.files[MODEL]
    refusal(tmp_path, "127.0.0.1 has no such file any more", "Update these nodes", download.REPOSITORY)
    assert there(tmp_path) == {}  # asked for before anything comes


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, ["refuses it (403)", "HF_TOKEN"]), (503, ["is in trouble (503)"]), (407, ["the proxy", "refuses the way"])],
)
def test_a_server_that_refuses_is_told(status, words, hub, tmp_path):
    hub.status = status
    refusal(tmp_path, *words)


def test_a_page_that_wants_a_login_is_no_hub(hub, tmp_path):
    hub.is_hub = False
    refusal(tmp_path, "127.0.0.1 is no Hugging Face hub", "login")


def test_no_network_is_told(hub, tmp_path, monkeypatch):
    hub.__exit__()
    refusal(tmp_path, "127.0.0.1 cannot be reached (", "Check the network", "HF_ENDPOINT")
    at("hub.example", monkeypatch)
    refusal(tmp_path, "hub.example cannot be reached (")


def test_a_proxy_that_is_not_there_is_told_without_its_password(hub, tmp_path, monkeypatch):
    at(hub.url.replace("127.0.0.1", "hub.invalid"), monkeypatch, HTTP_PROXY="http://me:secret@127.0.0.1:9")
    message = refusal(tmp_path, "hub.invalid cannot be reached through the proxy 127.0.0.1:9")
    assert "secret" not in message


def test_a_proxy_that_refuses_is_told(hub, tmp_path, monkeypatch):
    """A CONNECT to it gets an error, as a wrong password does."""
    at("https://hub.invalid", monkeypatch, HTTPS_PROXY=hub.url)
    refusal(tmp_path, "the proxy 127.0.0.1:", "refuses the way to hub.invalid", "HTTPS_PROXY")


def test_a_proxy_of_no_kind_is_told(hub, tmp_path, monkeypatch):
    at("https://hub.invalid", monkeypatch, HTTPS_PROXY="carrier-pigeon://127.0.0.1")
    refusal(tmp_path, "the proxy of HTTPS_PROXY", "cannot be used")


def test_offline_mode_is_told(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refusal(tmp_path, "HF_HUB_OFFLINE is set")
    assert hub.requests == []


def test_a_full_disk_is_told_before_anything_comes(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1_000_000))
    refusal(tmp_path, "has 0.0 GB free, and 0.0 GB are needed", "Make room")
    assert there(tmp_path) == {} and hub.sent(VAE) == []


def test_room_is_needed_for_what_is_still_to_come(hub, tmp_path, monkeypatch):
    hub.cuts[MODEL] = [1_500_000, 0, 0, 0]
    refusal(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1_000_000))
    get(tmp_path)


def test_a_disk_that_fills_up_is_told(hub, tmp_path):
    """A limit on the size of files stands for the disk's."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
    try:
        refusal(tmp_path, f"the disk takes no more ({os.strerror(errno.EFBIG)})", "what has come is kept")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert hub.sent(MODEL) == [None] and partials(tmp_path)
    get(tmp_path)
    assert there(tmp_path)[MODEL] == FILES[MODEL]


def test_a_folder_that_cannot_be_written_is_told(hub, tmp_path, monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    refusal(tmp_path, f"{tmp_path / 'lance'} cannot be written (Permission denied)")


def test_two_programs_do_not_write_one_file(hub, tmp_path):
    (tmp_path / "lance").mkdir()
    with download.FileLock(str(tmp_path / "lance" / "download.lock")):
        refusal(tmp_path, "another program is downloading")


# ---- The script ------------------------------------------------------------------------------------------------------


SCRIPT = REPOSITORY / "scripts" / "download.py"


def script(*arguments: str, cwd: Path, endpoint: str, path: Path = SCRIPT, **environment: str):
    """The script in a Python without the script's own folder on its path."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | environment
    return subprocess.run(
        [sys.executable, "-I", str(path), *arguments],
        capture_output=True, text=True, timeout=60, cwd=cwd, env=environment | {"HF_ENDPOINT": endpoint},
    )  # fmt: skip


def test_the_script_downloads_from_a_mirror(hub, tmp_path):
    """From any folder, and isolated as a portable build's Python is."""
    (tmp_path / "models").mkdir()
    done = script("Lance_3B_Video", "--models", "models", cwd=tmp_path, endpoint=hub.url)
    assert done.returncode == 0 and done.stdout.strip().endswith("Lance_3B_Video/model.safetensors"), done.stderr
    assert "Lance_3B_Video/model.safetensors" in there(tmp_path / "models") and "100 %" in done.stderr


def test_the_script_says_what_is_wrong_in_a_sentence(hub, tmp_path):
    (tmp_path / "models").mkdir()
    offline = script("--models", "models", cwd=tmp_path, endpoint=hub.url, HF_HUB_OFFLINE="1")
    assert offline.returncode == 1 and "HF_HUB_OFFLINE is set" in offline.stderr and "Traceback" not in offline.stderr
    for arguments in ((), ("--models", "model")):
        nowhere = script(*arguments, cwd=tmp_path, endpoint=hub.url)
        assert nowhere.returncode == 1 and "with --models." in nowhere.stderr and "Traceback" not in nowhere.stderr
    assert not (tmp_path / "model").exists() and hub.requests == []


def test_the_script_finds_the_comfyui_around_it(hub, tmp_path):
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "custom_nodes" / "lance").symlink_to(REPOSITORY)
    path = tmp_path / "custom_nodes" / "lance" / "scripts" / "download.py"
    done = script(cwd=REPOSITORY, endpoint=hub.url, path=path)
    assert done.returncode == 0 and MODEL in there(tmp_path / "models"), done.stderr
