"""The nodes. One feature a file, listed in FEATURES; each exports NODES. `choice`, `progress`, `resolution` and
`samples` serve them."""

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io

from . import answer, edit, encode, frames, guidance, latent, loader, lora, paste, rank, reference, samples, windows

FEATURES = (loader, lora, encode, edit, paste, reference, latent, frames, windows, guidance, answer, rank)
NODES = [node for feature in FEATURES for node in feature.NODES]


class LanceExtension(ComfyExtension):
    async def on_load(self) -> None:
        folder_paths.add_model_folder_path(loader.FOLDER, os.path.join(folder_paths.models_dir, loader.FOLDER))
        samples.provide(Path(folder_paths.get_input_directory()))

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> LanceExtension:
    return LanceExtension()
