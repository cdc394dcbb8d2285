"""Workflows that train, in seconds."""

from __future__ import annotations

from comfyui_lance.dev.host import workflows


def in_two_steps(prompt: workflows.Prompt) -> None:
    """Training and sampling, which take minutes else."""
    for type in ("TrainLoraNode", "KSampler"):
        for its in workflows.of_type(prompt, type):
            its["steps"] = 2
