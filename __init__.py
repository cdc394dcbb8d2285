"""Lance for ComfyUI: text, pictures and clips in, pictures, clips and text out, as a native ComfyUI model."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
