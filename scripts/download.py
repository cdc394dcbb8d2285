"""Downloads one of Lance's official checkpoints, with its vision encoder and VAE, as Load Lance does.

    python scripts/download.py [Lance_3B|Lance_3B_Video] [--models DIR]

Lance_3B (16.5 GB in all) is for pictures, Lance_3B_Video (18.3 GB) for clips and pictures. DIR is ComfyUI's models
folder, by default that of the ComfyUI in whose custom_nodes this plugin is. What is there already stays; what was
interrupted goes on. HF_ENDPOINT names a mirror. Needs huggingface_hub and safetensors, which come with ComfyUI.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

SCRIPT = Path(__file__)
FOLDERS = ("lance", "text_encoders", "vae")


def import_lance_model() -> None:
    """The package beside this folder, which a portable build's Python does not find by itself."""
    folder = SCRIPT.resolve().parent.parent / "lance_model"
    spec = importlib.util.spec_from_file_location(
        "lance_model", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = sys.modules["lance_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


import_lance_model()

from lance_model.checkpoint import CheckpointError  # noqa: E402
from lance_model.download import GIGABYTES, download  # noqa: E402


def models_folder() -> Path | None:
    """That of the ComfyUI around the plugin, also where the plugin's folder is a link."""
    for script in (SCRIPT.absolute(), SCRIPT.resolve()):
        if script.parents[2].name == "custom_nodes":
            return script.parents[3] / "models"
    return None


def show(done: int, total: int) -> None:
    text = f"\r{100 * done // total} % of {total / 1e9:.2f} GB"
    if text != show.last:
        show.last = text
        print(text, end="", file=sys.stderr, flush=True)


show.last = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=tuple(GIGABYTES), default=next(iter(GIGABYTES)))
    parser.add_argument("--models", type=Path, metavar="DIR", default=models_folder())
    arguments = parser.parse_args()
    if arguments.models is None or not arguments.models.is_dir():
        where = f"There is no folder {arguments.models}" if arguments.models else "This plugin is in no custom_nodes"
        sys.exit(f"{where}. Name ComfyUI's models folder with --models.")
    folders = [arguments.models / name for name in FOLDERS]
    try:
        path = download(arguments.model, folders[0], folders[-1], folders, show)
    except CheckpointError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. What has come is kept; the same command goes on from there.")
    print(f"\n{path.resolve()}")


if __name__ == "__main__":
    main()
