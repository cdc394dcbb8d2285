"""scripts/convert.py in half a gigabyte of memory, as the README promises, over tensors of the real sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
from comfyui_lance.scripts import convert
from safetensors import safe_open
from support.checkpoints import write_sparse

pytestmark = pytest.mark.slow

LIMIT = 300 << 20  # bytes, beside the 0.2 GB of Python and torch on a CPU
HIDDEN, MLP, ROWS = 2048, 11008, 151936
LAYER = "language_model.model.layers.0."
# One of each kind of the largest tensors of Lance_3B. All are zeros, so the file takes no room.
EMBEDDINGS = "language_model.model.embed_tokens.weight"
SHAPES = {
    f"{LAYER}self_attn.q_proj_moe_gen.weight": (HIDDEN, HIDDEN),
    f"{LAYER}mlp_moe_gen.down_proj.weight": (HIDDEN, MLP),
    f"{LAYER}mlp.up_proj.weight": (MLP, HIDDEN),
    "vae2llm.weight": (HIDDEN, 48),
    "llm2vae.bias": (48,),
}
PROGRAM = """
import sys
from pathlib import Path
import convert

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

before = memory("VmRSS")
convert.main()
sys.stdout.write(str(memory("VmHWM") - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("dtype", ["bf16", "fp8", "nvfp4", "int8"])
def test_half_a_gigabyte_is_enough(dtype, tiny, tmp_path):
    model, out = tmp_path / "Lance_3B" / "model.safetensors", tmp_path / "out.safetensors"
    rows = ROWS if dtype == "bf16" else HIDDEN  # which no format quantises: they are the same work in each
    shapes = SHAPES | {EMBEDDINGS: (rows, HIDDEN)}
    write_sparse(model, shapes, "F32")
    command = [sys.executable, "-c", PROGRAM, model, out, "--dtype", dtype]
    command += ["--vision", tiny / "Qwen2.5-VL-ViT" / "vit.safetensors", "--vae", tiny / "Wan2.2_VAE.safetensors"]
    scripts = os.environ | {"PYTHONPATH": str(Path(convert.__file__).parent)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=scripts)
    assert done.returncode == 0, done.stderr
    with safe_open(out, "pt") as file:
        written = sum(prod(file.get_slice(key).get_shape()) for key in file.keys())
    assert written > 0.8 * sum(map(prod, shapes.values()))  # NVFP4 packs two a byte
    assert 16 << 20 < int(done.stdout) < LIMIT, f"{int(done.stdout) >> 20} MiB"
