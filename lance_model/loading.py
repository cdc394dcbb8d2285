"""State dicts → ComfyUI's MODEL, CLIP and VAE.

Weights stay memory-mapped and become the modules' parameters without a copy wherever the dtype allows, and a file that is
loaded twice is held once.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import torch

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils

from . import context, guidance
from .checkpoint import (
    CheckpointError, Header, Keys, assign, find_beside, is_vision, read_header, transformer_prefix, vision_settings)
from .config import TransformerConfig, VisionConfig
from .diffusion import LanceConfig
from .language import LanceLanguage, LanceTokenizer

WEIGHT_DTYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")
FP8 = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e4m3fn_fast": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
VISION_FILES = ("Qwen2.5-VL-ViT/vit.safetensors", "vit.safetensors")
VAE_FILES = ("Wan2.2_VAE.safetensors", "wan2.2_vae.safetensors", "Wan2.2_VAE.pth")

# Modules and VAEs in use, by file and dtype. Weak: what nobody uses is freed.
_in_use: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def _identity(*paths: Path) -> tuple:
    return tuple((str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths)


def load(transformer: str | os.PathLike, vision: str | os.PathLike | None = None, vae: str | os.PathLike | None = None,
         weight_dtype: str = "default", folders: list[Path] = ()):
    """(MODEL, CLIP, VAE) from files.

    Without `vision` or `vae` they are sought beside the transformer's file, as in the official repository, then in
    `folders`; a VAE in the transformer's own file comes first, a vision encoder in it last. `weight_dtype` is one of
    WEIGHT_DTYPES. Raises CheckpointError with a sentence for the user.
    """
    header = read_header(transformer)
    prefix = transformer_prefix(header)
    keys = assign(header, prefix)
    vision_header, vision_keys = _vision(header, keys, vision, folders)
    config = _config(header, keys)
    model = load_model(header, keys, config, weight_dtype)
    clip = load_clip(header, keys, vision_header, vision_keys, config, model, weight_dtype)
    return model, clip, load_vae(header, keys, vae, folders)


def _config(header: Header, keys: Keys) -> TransformerConfig:
    try:
        return TransformerConfig.from_shapes({name: header.shapes[key] for name, key in keys.model.items()})
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{header.path.name} lacks weights that every Lance has ({error}). Download it again.") from None


def _vision(header: Header, keys: Keys, vision: str | os.PathLike | None, folders: list[Path]) -> tuple[Header, Keys]:
    """The standalone vision encoder if there is one, else the one inside the transformer's file."""
    if vision is None:
        vision = find_beside(header.path, VISION_FILES, folders)
    if vision is not None:
        found = read_header(vision)
        if not is_vision(found):
            raise CheckpointError(
                f"{found.path.name} is not Qwen2.5-VL's vision encoder. Choose vit.safetensors from the official Lance repository.")
        return found, assign(found)
    if keys.vision:
        return header, keys
    raise CheckpointError(
        f"There is no vision encoder for {header.path.name}. Put the folder Qwen2.5-VL-ViT (vit.safetensors and config.json) "
        "from the official Lance repository beside it, or choose the file in Load Lance.")


def _state_dict(header: Header, mapping: dict[str, str], tensors: dict[Path, dict]) -> dict[str, torch.Tensor]:
    if header.path not in tensors:
        tensors[header.path] = comfy.utils.load_torch_file(str(header.path))
    return {name: tensors[header.path][key] for name, key in mapping.items()}


def _assign_weights(module: torch.nn.Module, weights: dict[str, torch.Tensor], name: str) -> None:
    """Makes the tensors the module's parameters; every key must find its place and every place its key."""
    expected = {key: parameter.shape for key, parameter in module.state_dict().items()}
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    wrong = [key for key in expected.keys() & weights.keys() if expected[key] != weights[key].shape]
    if missing or unknown or wrong:
        problem = (f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which Lance has not" if unknown else
                   f"has {wrong[0]} of shape {tuple(weights[wrong[0]].shape)} instead of {tuple(expected[wrong[0]])}")
        raise CheckpointError(f"{name} is not a complete Lance checkpoint: it {problem}. Download it again.")
    module.load_state_dict(weights, assign=True)
    module.requires_grad_(False)


def _file_dtype(weights: dict[str, torch.Tensor]) -> torch.dtype:
    return comfy.utils.weight_dtype(weights) or torch.float32


def _is_large(name: str, weight: torch.Tensor) -> bool:
    """The projections of the layers, which hold nearly all bytes. All else is small or sensitive and keeps its precision."""
    return weight.ndim == 2 and ".layers." in name


def load_model(header: Header, keys: Keys, config: TransformerConfig, weight_dtype: str):
    """The MODEL: both experts as a model patcher, with Lance's guidance and context store on it."""
    load_device = comfy.model_management.get_torch_device()
    identity = ("model", _identity(header.path), weight_dtype, load_device)
    model = _in_use.get(identity)
    if model is None:
        model = _build_model(header, keys, config, weight_dtype, load_device)
        _in_use[identity] = model
    patcher = comfy.model_patcher.CoreModelPatcher(
        model, load_device=load_device, offload_device=comfy.model_management.unet_offload_device())
    context.add_to(patcher)
    guidance.apply(patcher)
    return patcher


def _build_model(header: Header, keys: Keys, config: TransformerConfig, weight_dtype: str, load_device):
    weights = _state_dict(header, keys.model, {})
    dtype = _file_dtype(weights)
    if dtype == torch.float32 and not comfy.model_management.is_device_cpu(load_device):
        parameters = sum(w.nelement() for w in weights.values())
        dtype = comfy.model_management.unet_dtype(
            model_params=parameters, supported_dtypes=LanceConfig.supported_inference_dtypes, weight_dtype=dtype)
    large = FP8.get(weight_dtype, dtype)
    for name, weight in weights.items():
        weights[name] = weight.to(large if _is_large(name, weight) else dtype)

    model_config = LanceConfig({**LanceConfig.unet_config, **vars(config)})
    manual_cast = comfy.model_management.unet_manual_cast(large, load_device, model_config.supported_inference_dtypes)
    model_config.set_inference_dtype(large, manual_cast)
    model_config.optimizations["fp8"] = weight_dtype == "fp8_e4m3fn_fast"
    model = model_config.get_model(weights, device=torch.device("meta"))
    _assign_weights(model.diffusion_model, weights, header.path.name)
    comfy.model_management.archive_model_dtypes(model.diffusion_model)
    model.device = comfy.model_management.unet_offload_device()
    return model


def load_clip(header: Header, keys: Keys, vision_header: Header, vision_keys: Keys, config: TransformerConfig,
              model, weight_dtype: str) -> comfy.sd.CLIP:
    """The CLIP: tokenizer, embeddings, vision encoder and language head. It answers questions through `model`."""
    load_device = comfy.model_management.text_encoder_device()
    identity = ("clip", _identity(header.path, vision_header.path), weight_dtype, load_device)
    module = _in_use.get(identity)
    if module is None:
        module = _build_language(header, keys, vision_header, vision_keys, config, load_device)
        module.transformer_patcher = model
        _in_use[identity] = module
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model = module
    clip.tokenizer = module.tokenizer
    clip.patcher = comfy.model_patcher.CoreModelPatcher(
        module, load_device=load_device, offload_device=comfy.model_management.text_encoder_offload_device())
    clip.patcher.is_clip = True
    clip.patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
    clip.layer_idx, clip.apply_hooks_to_conds = None, None
    clip.use_clip_schedule, clip.tokenizer_options = False, {}
    return clip


def _build_language(header: Header, keys: Keys, vision_header: Header, vision_keys: Keys, config: TransformerConfig, load_device):
    settings = vision_settings(vision_header)
    try:
        vision = VisionConfig.from_shapes(
            {name.removeprefix("visual."): vision_header.shapes[key] for name, key in vision_keys.vision.items()}, settings)
    except (KeyError, IndexError):
        raise CheckpointError(f"{vision_header.path.name} is not a complete vision encoder. Download it again.") from None
    if vision.out_hidden != config.hidden:
        raise CheckpointError(
            f"{vision_header.path.name} belongs to another model: it gives vectors of {vision.out_hidden} numbers, while "
            f"{header.path.name} takes {config.hidden}. Choose vit.safetensors from the official Lance repository.")
    tensors: dict[Path, dict] = {}
    weights = _state_dict(header, keys.language, tensors) | _state_dict(vision_header, vision_keys.vision, tensors)
    if "embed_tokens.weight" not in weights:
        raise CheckpointError(f"{header.path.name} lacks the token embeddings (embed_tokens). Download it again.")
    dtype = _file_dtype(weights)
    if dtype == torch.float32 and comfy.model_management.should_use_bf16(load_device):
        dtype = torch.bfloat16
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    module = LanceLanguage(
        config.hidden, weights["embed_tokens.weight"].shape[0], vision, LanceTokenizer(),
        device=torch.device("meta"), dtype=dtype, operations=comfy.ops.manual_cast)
    _assign_weights(module, weights, header.path.name)
    comfy.model_management.archive_model_dtypes(module)
    return module


def load_vae(header: Header, keys: Keys, vae: str | os.PathLike | None, folders: list[Path]) -> comfy.sd.VAE:
    """Wan 2.2's VAE: ComfyUI's own."""
    path = Path(vae) if vae is not None else header.path if keys.vae else find_beside(header.path, VAE_FILES, folders)
    if path is None:
        raise CheckpointError(
            f"There is no VAE for {header.path.name}. Put Wan2.2_VAE.pth from the official Lance repository beside its folder, "
            "or ComfyUI's wan2.2_vae.safetensors into models/vae and choose it in Load Lance.")
    identity = ("vae", _identity(path))
    found = _in_use.get(identity)
    if found is None:
        found = _build_vae(path, keys.vae if path == header.path else {})
        _in_use[identity] = found
    return found


def _build_vae(path: Path, mapping: dict[str, str]) -> comfy.sd.VAE:
    if path.suffix in (".safetensors", ".sft"):
        read_header(path)
    try:
        weights, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
        if mapping:
            weights = {name: weights[key] for name, key in mapping.items()}
        vae = comfy.sd.VAE(sd=weights, metadata=metadata)
    except CheckpointError:
        raise
    except Exception as error:  # a foreign pickle or state dict can fail in any way; the cause is kept for the log
        raise CheckpointError(f"{path.name} cannot be read as a VAE. Choose Wan 2.2's VAE (Wan2.2_VAE.pth or wan2.2_vae.safetensors).") from error
    if vae.first_stage_model is None or vae.latent_channels != 48:
        raise CheckpointError(f"{path.name} is not Wan 2.2's VAE, which Lance needs. Choose Wan2.2_VAE.pth or wan2.2_vae.safetensors.")
    return vae
