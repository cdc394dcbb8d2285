"""A parity case: what the reference implementation computed on the tiny checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open


@dataclass
class Case:
    """Tensors by name, and the task's settings."""

    folder: Path
    tensors: dict[str, torch.Tensor]
    settings: dict

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def latent(self, name: str) -> torch.Tensor:
        """[t, h, w, 48] as stored → [1, 48, t, h, w] in the model's own latent space."""
        return self.tensors[name].movedim(-1, 0)[None]

    def velocity(self, name: str) -> torch.Tensor:
        """[n, 48] as stored → [1, 48, t, h, w] of the predicted frames."""
        v = self.tensors[name].T
        return v.reshape(1, v.shape[0], -1, *self.tensors["latent"].shape[1:3])


def load_case(folder: Path, name: str) -> Case:
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["case"])
        return Case(folder, {key: file.get_tensor(key) for key in file.keys()}, settings)
