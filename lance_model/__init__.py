"""Lance, ByteDance's 3B unified model (arXiv 2605.18678), as a ComfyUI model.

`sequence` and `positions` say what the model reads, `transformer` computes it, `context` keeps what a sampling run can
reuse, `diffusion` and `language` are the MODEL and CLIP that ComfyUI sees, `checkpoint` and `loading` make them from
files, `found` and `download` get the files. Nothing here knows a node.
"""
