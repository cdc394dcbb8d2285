"""Makes one file of Lance's, or names a LoRA as ComfyUI's loaders know it.

    python scripts/convert.py MODEL_FILE OUT [--dtype bf16|fp8|mxfp8|nvfp4|int8] [--keep understanding|generation|ends]
                              [--vision FILE] [--vae FILE]
    python scripts/convert.py LORA_FILE OUT

The first makes a checkpoint for Load Lance that holds transformer, text encoder and VAE. Vision encoder and VAE are
those beside the model, as in the official repository, unless they are named. bf16 is the official precision. The others
are ComfyUI's own formats of the experts' projections, and leave all else in bf16; the VAE stays as it is:

- fp8: half the size, one scale a tensor; fp8 weights are decoded before each product
- mxfp8: half the size, a scale for 32 columns; multiplied as mxfp8 where the card can (Blackwell)
- nvfp4: little over a quarter, a scale for 16 columns; decoded before each product
- int8: half the size, a scale a row, columns rotated (ConvRot); multiplied as int8

--keep leaves a part of the projections in bf16 too: an expert, or the first and the last layer. It may be given twice.

The second renames a LoRA that PEFT or a trainer has written and adds the strength of its adapter_config.json.

Tensors pass through memory piece by piece. OUT appears only when it is complete. Needs torch and safetensors; mxfp8,
nvfp4 and int8 also comfy-kitchen, so run it with the Python that runs ComfyUI.
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
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
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
DTYPES |= {"U8": torch.uint8, "I8": torch.int8, "I64": torch.int64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ("F32", "BF16", "F16")
CHUNK = 1 << 20  # elements
TILE = 128  # rows: the scales of blocks are stored in tiles of so many, and a piece has whole tiles
VAE_MARKS = ("vae.conv2.weight", "vae.decoder.1.weight")  # take the 48 channels, in Wan 2.2's VAE or a small one
PREFIXES = {"model": "model.diffusion_model.", "language": "text_encoders.", "vision": "text_encoders.", "vae": "vae."}
# What is noted beside a weight. Of fp8 and nvfp4 nobody calibrated the activations, so they keep their precision.
NOTES = {
    "fp8": {"format": "float8_e4m3fn", "full_precision_matrix_mult": True},
    "mxfp8": {"format": "mxfp8"},
    "nvfp4": {"format": "nvfp4", "full_precision_matrix_mult": True},
    "int8": {"format": "int8_tensorwise"},
}
LAYOUTS = {"mxfp8": "TensorCoreMXFP8Layout", "nvfp4": "TensorCoreNVFP4Layout", "int8": "TensorWiseINT8Layout"}
BLOCKS = {"mxfp8": 32, "nvfp4": 16}  # columns with one scale
ROTATIONS = (256, 64, 16, 4)  # columns that ConvRot turns together
UNDERSTANDING, GENERATION, ENDS = "understanding", "generation", "ends"
FP8_MAX, FP4_MAX = 448.0, 6.0


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
    rows = max(1, CHUNK // (TILE * math.prod(shape[1:]))) * TILE
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


def layout(dtype: str):
    """comfy-kitchen's class for a format, which is ComfyUI's."""
    try:
        import comfy_kitchen.tensor

        return getattr(comfy_kitchen.tensor, LAYOUTS[dtype])
    except (ImportError, AttributeError):
        raise CheckpointError(
            f"comfy-kitchen makes {dtype}, and this Python lacks it or has an old one. "
            "Run the script with the Python that runs ComfyUI, or take --dtype fp8."
        ) from None


def quantised(layer: str, part: Part, key: str, dtype: str) -> list[Tensor]:
    """A projection in one of ComfyUI's formats: the weight, its scales, and the note that says so."""
    weight = plain(f"{layer}.weight", part, key, torch.float32)
    rows, columns = weight.shape
    block = BLOCKS.get(dtype, 1)
    if rows % block or columns % block:
        raise CheckpointError(f"{layer} is {rows} × {columns}, which {dtype} cannot store. Take --dtype fp8.")
    settings = dict(NOTES[dtype])
    rotation = next((size for size in ROTATIONS if columns % size == 0), None)
    if dtype == "int8" and rotation:
        settings |= {"convrot": True, "convrot_groupsize": rotation}
    note = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
    scales: dict[str, list[torch.Tensor]] = defaultdict(list)  # of the pieces read so far

    def quantise() -> Iterator[torch.Tensor]:
        largest = torch.ones(())
        if dtype in ("fp8", "nvfp4"):
            largest = torch.stack([piece.abs().amax() for piece in weight.read()]).amax().clamp(min=1e-12)
        for piece in weight.read():
            for end, tensor in encode(dtype, piece, largest, settings).items():
                if end:
                    scales[end].append(tensor)
                else:
                    yield tensor

    def read(end: str) -> Iterator[torch.Tensor]:  # after the weight
        found = scales.pop(end)
        yield from found if found[0].ndim else found[:1]

    return [
        *(
            Tensor(f"{layer}.weight{end}", stored, shape, partial(read, end) if end else quantise)
            for end, (stored, shape) in places(dtype, rows, columns).items()
        ),
        Tensor(f"{layer}.comfy_quant", torch.uint8, tuple(note.shape), lambda: iter([note])),
    ]


def places(dtype: str, rows: int, columns: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """What a weight is stored as: the ends of its tensors' names → dtypes and shapes."""
    whole, fp8 = (rows, columns), torch.float8_e4m3fn
    if dtype == "fp8":
        return {"": (fp8, whole), "_scale": (torch.float32, ())}
    if dtype == "int8":
        return {"": (torch.int8, whole), "_scale": (torch.float32, (rows, 1))}
    tiles = (-(-rows // TILE) * TILE, -(-columns // (4 * BLOCKS[dtype])) * 4)
    if dtype == "mxfp8":
        return {"": (fp8, whole), "_scale": (torch.uint8, tiles)}
    packed = (torch.uint8, (rows, columns // 2))
    return {"": packed, "_scale": (fp8, tiles), "_scale_2": (torch.float32, ())}


def encode(dtype: str, piece: torch.Tensor, largest: torch.Tensor, settings: dict) -> dict[str, torch.Tensor]:
    """Some rows of a weight, and their scales, under the ends of their names; `largest` is that of the whole weight."""
    if dtype == "fp8":
        scale = largest / FP8_MAX
        return {"": piece.div_(scale).to(torch.float8_e4m3fn), "_scale": scale}
    options = {
        "mxfp8": {},
        "nvfp4": {"scale": largest / (FP8_MAX * FP4_MAX)},
        "int8": {"per_channel": True} | {name: value for name, value in settings.items() if name != "format"},
    }[dtype]
    made = layout(dtype)
    tensors = made.state_dict_tensors(*made.quantize(piece, **options))
    if dtype == "mxfp8":
        tensors["_scale"] = tensors["_scale"].view(torch.uint8)
    return tensors


def stays(name: str, layers: int, keep: Collection[str]) -> bool:
    """Whether a projection is one of those that --keep names."""
    layer = int(name.split(".layers.")[1].split(".")[0])
    expert = GENERATION if "_moe_gen" in name else UNDERSTANDING
    return expert in keep or ENDS in keep and layer in (0, layers - 1)


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


def projections(part: Part, dtype: str, keep: Collection[str]) -> set[str]:
    """Those of the transformer's tensors that are quantised."""
    if dtype == "bf16":
        if keep:
            raise CheckpointError(
                "--keep says what stays in bf16 beside a smaller --dtype. Give that too, or leave it out."
            )
        return set()
    found = [name for name, shape in part.shapes.items() if ".layers." in name and len(shape) == 2]
    layers = 1 + max(int(name.split(".layers.")[1].split(".")[0]) for name in found)
    chosen = {name for name in found if not stays(name, layers, keep)}
    if not chosen:
        raise CheckpointError(f"--keep leaves nothing that could be {dtype}. Keep less, or take --dtype bf16.")
    return chosen


def checkpoint(
    header: Header, dtype: str, vision: Path | None, vae: Path | None, keep: Collection[str]
) -> tuple[list[Tensor], dict]:
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
    tensors, smaller = [], projections(parts.model, dtype, keep)
    for name, key in parts.model.keys.items():
        full = PREFIXES["model"] + name
        if name in smaller:
            tensors += quantised(full.removesuffix(".weight"), parts.model, key, dtype)
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


def convert(
    model: Path,
    out: Path,
    dtype: str,
    vision: Path | None,
    vae: Path | None,
    progress: Callable[[int, int, int], None] = show,
    *,
    keep: Collection[str] = (),
) -> None:
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out.name} must end in .safetensors.")
    if out.exists():
        raise CheckpointError(f"{out} is there already. Choose another name, or move it away.")
    if not out.parent.is_dir():
        raise CheckpointError(f"There is no folder {out.parent}. Make it first.")
    header = read_header(model)
    if is_lora(header.shapes):
        if dtype != "bf16" or keep or vision or vae:
            raise CheckpointError(f"{model.name} is a LoRA, which is only renamed. Leave the options out.")
        tensors, metadata = lora(header)
    else:
        if dtype in LAYOUTS:
            layout(dtype)
        tensors, metadata = checkpoint(header, dtype, vision, vae, keep)
    write(tensors, metadata, out, progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_FILE")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--dtype", choices=("bf16", *NOTES), default="bf16")
    parser.add_argument("--keep", choices=(UNDERSTANDING, GENERATION, ENDS), action="append", default=[])
    parser.add_argument("--vision", type=Path, metavar="FILE")
    parser.add_argument("--vae", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves `write` properly
    try:
        convert(arguments.model, arguments.out, arguments.dtype, arguments.vision, arguments.vae, keep=arguments.keep)
    except (CheckpointError, OSError) as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit(f"\nStopped; {arguments.out} was not made.")
    print(f"\n{arguments.out}: {arguments.out.stat().st_size / 1e9:.2f} GB", file=sys.stderr)


if __name__ == "__main__":
    main()
