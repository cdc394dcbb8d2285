"""A model goes on as it was while its files are written over, as a download into place or a conversion does."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comfyui_lance.lance_model import language, loading, media
from comfyui_lance.lance_model.checkpoint import CheckpointError
from comfyui_lance.lance_model.sequence import Label
from support.sampling import sample, schedule

pytestmark = pytest.mark.slow

FILES = ("Lance_3B/model.safetensors", "Qwen2.5-VL-ViT/vit.safetensors", "Wan2.2_VAE.safetensors")


def cut_off(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def same_size(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


def an_edit(loaded) -> torch.Tensor:
    """Uses each of the three: experts, vision encoder and VAE."""
    model, clip, vae = loaded
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    source, _ = media.take(picture, media.KEEP, Label.SOURCE, vae)
    pair = language.encode_pair(clip, "Make it blue.", seen=[source])
    noise = torch.randn(source.latent.shape, generator=torch.Generator().manual_seed(2))
    return vae.decode(sample(model, *pair, noise, schedule(2, 3.5)))


def edit_after(tiny: str, folder: str) -> None:
    """What a process of its own runs: where a file is mapped, cutting it off kills the process."""
    expected = an_edit(loading.load(Path(tiny) / FILES[0]))
    for overwrite in (same_size, cut_off):
        copy = shutil.copytree(tiny, Path(folder) / overwrite.__name__)
        loaded = loading.load(copy / FILES[0])
        for name in FILES:
            overwrite(copy / name)
        assert torch.equal(an_edit(loaded), expected), overwrite.__name__


def test_a_model_outlives_its_files(tiny, tmp_path):
    script = "import sys, conftest, test_overwritten_files; test_overwritten_files.edit_after(*sys.argv[1:])"
    command = [sys.executable, "-c", script, tiny, tmp_path]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"


def test_a_file_that_shrinks_while_it_is_read_is_said(tiny, tmp_path, monkeypatch):
    path, read = Path(shutil.copy(tiny / FILES[0], tmp_path)), loading._read

    def shrinking(*arguments):
        cut_off(path)
        return read(*arguments)

    monkeypatch.setattr(loading, "_read", shrinking)
    with pytest.raises(CheckpointError, match="model.safetensors has become shorter while it was read"):
        loading.load(path, tiny / FILES[1], tiny / FILES[2])
