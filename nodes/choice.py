"""Choices that ComfyUI does not check: a dynamic combo whose value is none of its options never reaches the node."""

from __future__ import annotations

from collections.abc import Iterable


def chosen(name: str, value: dict | None, options: Iterable[str]) -> dict:
    """The value of the dynamic combo `name`; ValueError with the options if it was left out."""
    if value is None:
        raise ValueError(f"{name} is none of its options. Choose one of: {', '.join(options)}.")
    return value
