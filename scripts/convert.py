"""Makes one file of Lance's, or names a LoRA as ComfyUI's loaders know it.

    python scripts/convert.py MODEL_FILE OUT [--dtype bf16|fp8] [--vision FILE] [--vae FILE]
    python scripts/convert.py LORA_FILE OUT

The first makes a checkpoint for Load Lance that holds transformer, text encoder and VAE. Vision encoder and VAE are
those beside the model, as in the official repository, unless they are named. bf16 is the official precision; fp8 halves
the experts' projections, one scale a tensor, in ComfyUI's own format, and leaves all else in bf16. The VAE stays as it
is. The second renames a LoRA that PEFT or a trainer has written and adds the strength of its adapter_config.json.

Tensors pass through memory one at a time. OUT appears only when it is complete. Needs torch and safetensors alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open

REPOSITORY = Path(__file__).resolve().parent.parent


def import_lance_model() -> None:
    """The package beside this folder, without making the repository importable."""
    folder = REPOSITORY / "lance_model"
    spec = importlib.util.spec_from_file_location(
        "lance_model", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = sys.modules["lance_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


import_lance_model()

# E402: it can be imported only now.
from lance_model.checkpoint import (  # noqa: E402
    VAE_FILES,
    VISION_FILES,
    CheckpointError,
    Header,
    Part,
    assign,
    check_file,
    find_beside,
    read_header,
    transformer_prefix,
    vision_settings,
)
from lance_model.lora import is_lora, rename  # noqa: E402

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn}
DTYPES |= {"U8": torch.uint8, "I64": torch.int64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ("F32", "BF16", "F16")
CHUNK = 1 << 24  # elements
VAE_MARKS = ("vae.conv2.weight", "vae.decoder.1.weight")  # take the 48 channels, in Wan 2.2's VAE or a small one
PREFIXES = {"model": "model.diffusion_model.", "language": "text_encoders.", "vision": "text_encoders.", "vae": "vae."}
# Activations that nobody calibrated keep their precision.
FP8 = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
FP8_MAX = 448.0


@dataclass
class Tensor:
    """A tensor to be written; `read` gives its values, in order, in pieces of that dtype."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Iterator[torch.Tensor]]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def pieces(path: Path, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """A tensor of a safetensors file by its first dimension. Each piece opens the file anew, so that what has been read
    does not stay mapped."""
    if not shape:
        with safe_open(path, "pt") as file:
            yield file.get_tensor(key).to(dtype)
        return
    rows = max(1, CHUNK // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        with safe_open(path, "pt") as file:
            yield file.get_slice(key)[start : start + rows].to(dtype)


def plain(name: str, part: Part, key: str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of a part in another dtype, or in its own."""
    header = part.header
    if header.dtypes[key] not in (FLOATS if dtype else DTYPES):
        raise CheckpointError(
            f"{part.path.name} stores {key} as {header.dtypes[key]}. Convert from the official bf16 or float32 file."
        )
    dtype, shape = dtype or DTYPES[header.dtypes[key]], header.shapes[key]
    return Tensor(name, dtype, shape, partial(pieces, part.path, key, shape, dtype))


def fp8(layer: str, part: Part, key: str) -> list[Tensor]:
    """A projection in ComfyUI's scaled fp8: the weight, its scale, and the note that says so."""
    weight = plain(f"{layer}.weight", part, key, torch.float32)
    scale = torch.ones(())
    note = torch.tensor(list(json.dumps(FP8).encode()), dtype=torch.uint8)

    def quantise() -> Iterator[torch.Tensor]:
        values = torch.cat(list(weight.read()))
        scale.copy_(values.abs().amax().clamp(min=1e-12) / FP8_MAX)
        yield values.div_(scale).to(torch.float8_e4m3fn)

    return [
        Tensor(weight.name, torch.float8_e4m3fn, weight.shape, quantise),
        Tensor(f"{layer}.weight_scale", torch.float32, (), lambda: iter([scale])),  # after its weight
        Tensor(f"{layer}.comfy_quant", torch.uint8, tuple(note.shape), lambda: iter([note])),
    ]


def vae_tensors(path: Path) -> list[Tensor]:
    """The VAE as it is, with this prefix, from safetensors or a pickle of tensors."""
    check_file(path)
    if path.suffix.lower() != ".pth":
        header = read_header(path)
        keys = assign(header).vae.keys or {key: key for key in header.shapes}
        return [plain(PREFIXES["vae"] + name, Part(header), key) for name, key in keys.items()]
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights = {name: tensor.detach() for name, tensor in weights.items()}
        names = {name: NAMES[tensor.dtype] for name, tensor in weights.items()}
    except Exception as error:  # a foreign pickle can fail in any way
        raise CheckpointError(f"{path.name} cannot be read as a VAE. Choose Wan2.2_VAE.pth.") from error
    return [
        Tensor(PREFIXES["vae"] + name, DTYPES[names[name]], tuple(tensor.shape), lambda tensor=tensor: iter([tensor]))
        for name, tensor in weights.items()
    ]


def checkpoint(header: Header, dtype: str, vision: Path | None, vae: Path | None) -> tuple[list[Tensor], dict]:
    """The tensors and the metadata of a single file."""
    parts = assign(header, transformer_prefix(header))
    if parts.unknown:
        raise CheckpointError(f"{header.path.name} is not Lance's: it has {parts.unknown[0]}, which Lance has not.")
    vision = vision or find_beside(header.path, VISION_FILES)
    seeing = assign(read_header(vision)) if vision else parts
    language = parts.language if parts.language.keys else seeing.language
    if not seeing.vision.keys or not language.keys:
        missing = "vision encoder" if language.keys else "token embeddings"
        raise CheckpointError(
            f"{header.path.name} and what is beside it lack the {missing}. Name its file with --vision."
        )
    tensors = []
    for name, key in parts.model.keys.items():
        full, layer = PREFIXES["model"] + name, (PREFIXES["model"] + name).removesuffix(".weight")
        if dtype == "fp8" and ".layers." in name and len(header.shapes[key]) == 2:
            tensors += fp8(layer, parts.model, key)
        else:
            tensors.append(plain(full, parts.model, key, torch.bfloat16))
    for part in (language, seeing.vision):
        tensors += [plain(PREFIXES["vision"] + n, part, key, torch.bfloat16) for n, key in part.keys.items()]
    if vae is None and parts.vae.keys:
        tensors += [plain(PREFIXES["vae"] + name, parts.vae, key) for name, key in parts.vae.keys.items()]
    else:
        vae = vae or find_beside(header.path, VAE_FILES)
        if vae is None:
            raise CheckpointError(f"There is no VAE beside {header.path.name}. Name Wan2.2_VAE.pth with --vae.")
        seen = vae_tensors(vae)
        if not any(tensor.name in VAE_MARKS and tensor.shape[1:2] == (48,) for tensor in seen):
            raise CheckpointError(f"{vae.name} is not Wan 2.2's VAE, which Lance needs. Name another with --vae.")
        tensors += seen
    return tensors, {"format": "pt", "vision_config": json.dumps(vision_settings(seeing.vision.header))}


def lora(header: Header) -> tuple[list[Tensor], dict]:
    """A LoRA's tensors under the names that ComfyUI's loaders know, and its strength."""
    names = rename(header.path, header.shapes)
    tensors = [plain(name, Part(header), key) for name, key in names.keys.items()]
    for name, alpha in names.alphas.items():
        tensors.append(Tensor(name, torch.float32, (), lambda alpha=alpha: iter([torch.tensor(alpha)])))
    return tensors, {"format": "pt"}


def write(tensors: list[Tensor], metadata: dict, out: Path, progress: Callable[[int, int, int], None]) -> None:
    """A safetensors file, written beside its place and then moved into it. `progress` hears of the
    bytes done, of all, and of those done before."""
    entries, end = {"__metadata__": metadata}, 0
    for tensor in tensors:
        start, end = end, end + tensor.size
        entries[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    if shutil.disk_usage(out.parent).free < end:
        raise CheckpointError(f"{out.parent} has no room for {end / 1e9:.1f} GB. Choose another place for {out.name}.")
    unfinished, done = out.with_name(out.name + ".partial"), 0
    try:
        with unfinished.open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            for tensor in tensors:
                for piece in tensor.read():
                    flat = piece.contiguous().flatten().view(torch.uint8)
                    file.write(flat.numpy().data)
                    done += flat.nelement()
                    progress(done, end, done - flat.nelement())
        if done != end:
            raise CheckpointError(f"{out.name} would have {done} bytes instead of {end}. Download its parts again.")
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)


def show(done: int, total: int, before: int) -> None:
    if (percent := 100 * done // total) != 100 * before // total:
        print(f"\r{percent} % of {total / 1e9:.2f} GB", end="", file=sys.stderr, flush=True)


def convert(model: Path, out: Path, dtype: str, vision: Path | None, vae: Path | None, progress=show) -> None:
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out.name} must end in .safetensors.")
    if out.exists():
        raise CheckpointError(f"{out} is there already. Choose another name, or move it away.")
    if not out.parent.is_dir():
        raise CheckpointError(f"There is no folder {out.parent}. Make it first.")
    header = read_header(model)
    if is_lora(header.shapes):
        tensors, metadata = lora(header)
    else:
        tensors, metadata = checkpoint(header, dtype, vision, vae)
    write(tensors, metadata, out, progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_FILE")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--dtype", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--vision", type=Path, metavar="FILE")
    parser.add_argument("--vae", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves `write` properly
    try:
        convert(arguments.model, arguments.out, arguments.dtype, arguments.vision, arguments.vae)
    except (CheckpointError, OSError) as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit(f"\nStopped; {arguments.out} was not made.")
    print(f"\n{arguments.out}: {arguments.out.stat().st_size / 1e9:.2f} GB", file=sys.stderr)


if __name__ == "__main__":
    main()
