"""Files → ComfyUI's MODEL, CLIP and VAE.

Each weight is in memory once, and a file that is loaded twice is held once. Where ComfyUI reads weights from the file
whenever it needs them (dynamic VRAM) they stay mapped, as its own loaders' do; elsewhere they are read into memory of
their own, which what happens to the file later does not reach.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import comfy.hooks
import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import numpy
import torch

from . import context, guidance, kept, nano, precision, quantised, regions
from .checkpoint import (
    DOWNLOAD,
    VAE_FILES,
    VISION_FILES,
    CheckpointError,
    Part,
    Parts,
    assign,
    called,
    check_file,
    find_beside,
    read_header,
    transformer_prefix,
    vision_settings,
)
from .config import Shape, TransformerConfig, VisionConfig
from .diffusion import LanceConfig
from .language import LanceLanguage, LanceTokenizer
from .transformer import LanceTransformer

try:
    from comfy.storage import state_dict_fast_disk
except ImportError:  # ComfyUI before 0.37
    state_dict_fast_disk = None

WEIGHT_DTYPES = precision.WEIGHT_DTYPES
CHOOSE_VAE = "Choose Wan 2.2's (Wan2.2_VAE.pth or wan2.2_vae.safetensors)."

# Model patchers and VAEs in use, by files and dtype. Weak: what nobody uses is freed.
_in_use: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def _cached(key: tuple, paths: tuple[Path, ...], build: Callable):
    """What was built for these files, while somebody uses it and they are unchanged; else what `build` returns."""
    identity = (*key, *((path.resolve(), path.stat().st_size, path.stat().st_mtime_ns) for path in paths))
    found = _in_use.get(identity)
    if found is None:
        found = _in_use[identity] = build()
    return found


def load(
    transformer: str | os.PathLike,
    vision: str | os.PathLike | None = None,
    vae: str | os.PathLike | None = None,
    weight_dtype: str = "default",
    folders: list[Path] = (),
):
    """(MODEL, CLIP, VAE) from files.

    Without `vision` or `vae` they are sought beside the transformer's file, as in the official repository, then in
    `folders`; a VAE in the transformer's own file comes first, a vision encoder in it last. Where there is no vision
    encoder, the CLIP says so when it is to look at something. Token embeddings and head may be in either's file.
    `weight_dtype` is one of WEIGHT_DTYPES. Raises CheckpointError, a sentence for the user.
    """
    header = read_header(transformer)
    parts = assign(header, transformer_prefix(header))
    if parts.unknown:
        raise CheckpointError(f"{called(header.path)} is not Lance's: it has {parts.unknown[0]}, which Lance has not.")
    seeing = _with_vision(parts, vision, folders)
    wan = load_vae(parts.vae, vae, folders)
    model = load_model(parts.model, weight_dtype)
    clip = load_clip(parts.language if parts.language.keys else seeing.language, seeing.vision, model)
    return model.clone(), clip, wan


def _with_vision(parts: Parts, vision: str | os.PathLike | None, folders: list[Path]) -> Parts:
    """The standalone vision encoder's file if there is one, else the transformer's, which may have none."""
    path = parts.vision.path
    if vision is None:
        vision = find_beside(path, VISION_FILES, folders)
    if vision is not None:
        parts = assign(read_header(vision))
        if "visual.patch_embed.proj.weight" not in parts.vision.keys:
            raise CheckpointError(
                f"{parts.vision.path.name} is not Qwen2.5-VL's vision encoder. Choose vit.safetensors from the "
                "official Lance repository."
            )
    return parts


def load_model(part: Part, weight_dtype: str):
    """The MODEL: both experts as a model patcher, with Lance's guidance and context store on it.

    Callers take clones of it: only those share the backups of the weights that LoRAs replace.
    """
    return _cached(("model", weight_dtype), (part.path,), partial(_build_model, part, weight_dtype))


def _build_model(part: Part, weight_dtype: str, disable_dynamic: bool = False):
    file = part
    part, layers = quantised.layers(file)
    try:
        config = TransformerConfig.from_shapes(quantised.plain_shapes(part))
    except (LookupError, ZeroDivisionError) as error:
        raise CheckpointError(f"{called(part.path)} is not complete: it lacks {error}. Download it again.") from None
    except ValueError as error:
        raise CheckpointError(f"{called(part.path)} has dimensions that fit no Lance: {error}. {DOWNLOAD}") from None
    _check(part, quantised.stored(part, layers, _shapes(partial(LanceTransformer, **vars(config)))))
    load_device = comfy.model_management.get_torch_device()
    dtype = precision.of_model(part, load_device)
    large = precision.of_projections(part, layers, weight_dtype, dtype, load_device)

    def cast(name: str, weight: torch.Tensor) -> torch.Tensor:
        if name.rpartition(".")[0] in layers:
            return weight
        return weight.to(large if large and _is_large(name, weight) else dtype)

    weights = _read(part, _stays_mapped(load_device, disable_dynamic), cast)
    layers = quantised.unpack(weights, layers, dtype, keep=large is None)
    weights = {name: cast(name, weight) for name, weight in weights.items()}

    model_config = LanceConfig({**LanceConfig.unet_config, **vars(config)})
    if layers:
        model_config.quant_config = {"mixed_ops": True}
    else:
        model_config.optimizations["fp8"] = weight_dtype == "fp8_e4m3fn_fast"
    computed = comfy.model_management.unet_manual_cast(large, load_device, precision.SUPPORTED)
    model_config.set_inference_dtype(large or dtype, computed)
    # Quantised layers would take their weights to the device on which they were built.
    model = model_config.get_model(weights, device=torch.device("cpu" if layers else "meta"))
    _fill(model.diffusion_model, weights)
    model.device = comfy.model_management.unet_offload_device()
    model.trained = nano.trained(part.header.metadata)

    patcher = _patcher(model, weights, load_device, model.device, disable_dynamic)
    patcher.cached_patcher_init = (_build_model, (file, weight_dtype))
    context.add_to(patcher)
    regions.add_to(patcher)
    kept.add_to(patcher)
    guidance.Guidance().add_to(patcher)
    return patcher


def _is_large(name: str, weight: torch.Tensor) -> bool:
    """The layers' projections, which hold nearly all bytes. All else is small or sensitive and keeps its precision."""
    return weight.ndim == 2 and ".layers." in name


def load_clip(language: Part, vision: Part, model) -> comfy.sd.CLIP:
    """The CLIP: tokenizer, embeddings, vision encoder if `vision` has one, and language head. It answers questions
    through `model`."""
    build = partial(_build_language, language, vision, model)
    clip = comfy.sd.CLIP(no_init=True)
    clip.patcher = _cached(("clip", model), (language.path, vision.path), build).clone()
    clip.cond_stage_model, clip.tokenizer = clip.patcher.model, clip.patcher.model.tokenizer
    clip.layer_idx, clip.apply_hooks_to_conds = None, None
    clip.use_clip_schedule, clip.tokenizer_options = False, {}
    return clip


def _build_language(language: Part, vision: Part, model, disable_dynamic: bool = False):
    hidden = model.model.diffusion_model.hidden
    config = _vision_config(vision) if vision.keys else None
    if config is not None and config.out_hidden != hidden:
        raise CheckpointError(
            f"{vision.path.name} belongs to another model: it gives vectors of {config.out_hidden} numbers, while this "
            f"Lance takes {hidden}. Choose vit.safetensors from the official Lance repository."
        )
    vocabulary = language.shapes.get("embed_tokens.weight")
    if not vocabulary:
        raise CheckpointError(
            f"Neither the model's file nor {vision.path.name} has the token embeddings (embed_tokens). Choose the text "
            "encoder that belongs to the model as its vision encoder, or download Lance_3B again."
        )
    build = partial(LanceLanguage, hidden, vocabulary[0], config)
    expected = quantised.stored(language, {}, _shapes(partial(build, tokenizer=None)))
    _check(vision, {name: what for name, what in expected.items() if name.startswith("visual.")})
    _check(language, {name: what for name, what in expected.items() if not name.startswith("visual.")})

    load_device = comfy.model_management.text_encoder_device()
    dtype = precision.of_language(language, load_device)
    mapped = _stays_mapped(load_device, disable_dynamic)
    weights = {}
    for part in (language, vision):
        weights |= _read(part, mapped, lambda name, weight: weight.to(dtype))
    module = build(LanceTokenizer(), device=torch.device("meta"), dtype=dtype, operations=comfy.ops.manual_cast)
    _fill(module, weights)
    module.transformer_patcher = model
    module.trained = model.model.trained

    offload_device = comfy.model_management.text_encoder_offload_device()
    patcher = _patcher(module, weights, load_device, offload_device, disable_dynamic)
    patcher.cached_patcher_init = (_build_language, (language, vision, model))
    patcher.is_clip = True
    patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
    return patcher


def _vision_config(vision: Part) -> VisionConfig:
    shapes = {name.removeprefix("visual."): shape for name, shape in vision.shapes.items()}
    try:
        return VisionConfig.from_shapes(shapes, vision_settings(vision.header))
    except (LookupError, TypeError) as error:
        raise CheckpointError(
            f"{vision.path.name} is not a complete vision encoder, or not the one of its config.json ({error}). "
            "Download both again."
        ) from None


def load_vae(part: Part, vae: str | os.PathLike | None, folders: list[Path]) -> comfy.sd.VAE:
    """Wan 2.2's VAE, ComfyUI's own: from the given file, or from the model's (`part`), or found beside that."""
    path = Path(vae) if vae is not None else part.path if part.keys else find_beside(part.path, VAE_FILES, folders)
    if path is None:
        raise CheckpointError(
            f"There is no VAE for {called(part.path)}. Put Wan2.2_VAE.pth from the official Lance repository beside "
            "its folder, or ComfyUI's wan2.2_vae.safetensors into models/vae and choose it in Load Lance."
        )
    check_file(path)
    return _cached(("vae",), (path,), partial(_build_vae, path))


def _build_vae(path: Path) -> comfy.sd.VAE:
    header = read_header(path) if path.suffix.lower() in (".safetensors", ".sft") else None
    keys = assign(header).vae.keys if header else {}
    try:
        weights, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
        weights = {name: weights[key] for name, key in keys.items()} or weights
        vae = comfy.sd.VAE(sd=weights, metadata=metadata)
    except (MemoryError, comfy.model_management.OOM_EXCEPTION):
        raise
    except Exception as error:  # a foreign pickle or state dict can fail in any way; the cause is kept for the log
        raise CheckpointError(f"{path.name} cannot be read as a VAE. {CHOOSE_VAE}") from error
    if vae.first_stage_model is None or vae.latent_channels != 48:
        raise CheckpointError(f"{path.name} is not Wan 2.2's VAE, which Lance needs. {CHOOSE_VAE}")
    missing = sorted(vae.first_stage_model.state_dict().keys() - weights.keys())
    if missing:
        raise CheckpointError(f"{path.name} is not a complete VAE: it lacks {missing[0]}. Download it again.")
    vae.trained = nano.trained(header.metadata if header else {})
    vae.patcher.cached_patcher_init = (_build_vae_patcher, (path,))
    return vae


def _build_vae_patcher(path: Path, disable_dynamic: bool = False):
    return _build_vae(path).patcher


def _shapes(build: Callable[..., torch.nn.Module]) -> dict[str, Shape]:
    """Keys and shapes of a module of PyTorch's layers; ComfyUI's own may have no weights until they are loaded."""
    module = build(device="meta", operations=torch.nn)
    return {name: tuple(weight.shape) for name, weight in module.state_dict().items()}


def _check(part: Part, expected: quantised.Expected) -> None:
    """Every key must find its place and every place its key, before any weight is read."""
    shapes, dtypes = part.shapes, part.dtypes
    problems = [
        *(f"lacks {name}" for name in sorted(expected.keys() - shapes.keys())),
        *(f"has {name}, which Lance has not" for name in sorted(shapes.keys() - expected.keys())),
        *(
            f"has {name} of shape {shapes.get(name)} instead of {shape}"
            for name, (shape, _) in expected.items()
            if shapes.get(name) != shape
        ),
        *(
            f"stores {name} as {dtypes.get(name)}"
            for name, (_, allowed) in expected.items()
            if dtypes.get(name) not in allowed
        ),
    ]
    if problems:
        raise CheckpointError(
            f"{called(part.path)} is not complete or not Lance's: it {problems[0]}. Download it again."
        )


def _stays_mapped(load_device: torch.device, disable_dynamic: bool) -> bool:
    """Whether the weights get a patcher that reads them from the file whenever it needs them."""
    dynamic = comfy.memory_management.aimdo_enabled and not disable_dynamic
    return dynamic and not comfy.model_management.is_device_cpu(load_device)


def _read(part: Part, mapped: bool, cast: Callable[[str, torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """The part's tensors as `cast` makes them: mapped from the file, or read one by one into memory of their own."""
    if mapped:
        tensors = comfy.utils.load_torch_file(str(part.path))
        return {name: cast(name, tensors[key]) for name, key in part.keys.items()}
    with part.path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        first = file.tell()

        def tensor(key: str) -> torch.Tensor:
            start, end = header[key]["data_offsets"]
            file.seek(first + start)
            data = numpy.fromfile(file, numpy.uint8, end - start)
            if len(data) < end - start:
                raise CheckpointError(f"{called(part.path)} has become shorter while it was read. Load it again.")
            dtype = precision.STORED[part.header.dtypes[key]]
            return torch.from_numpy(data).view(dtype).view(part.header.shapes[key])

        return {name: cast(name, tensor(key)) for name, key in part.keys.items()}


def _fill(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Makes the tensors the module's parameters, without a copy."""
    module.load_state_dict(weights, assign=True)
    module.requires_grad_(False)
    comfy.model_management.archive_model_dtypes(module)


def _patcher(module: torch.nn.Module, weights: dict, load_device, offload_device, disable_dynamic: bool):
    patcher = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    # Whether the weights come from a disk so fast that they may be read again instead of being kept in memory.
    fast_disk = {} if state_dict_fast_disk is None else {"fast_disk": state_dict_fast_disk(weights)}
    return patcher(module, load_device=load_device, offload_device=offload_device, **fast_disk)
