"""The tiny checkpoint's files in every layout that users have, whole or spoiled."""

import json
import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import torch
from comfyui_lance.dev.host import tiny_checkpoint
from comfyui_lance.lance_model import loading
from comfyui_lance.lance_model.checkpoint import CheckpointError
from safetensors.torch import save_file

Shapes = dict[str, tuple[int, ...]]
MODEL, VISION, VAE = "Lance_3B/model.safetensors", "Qwen2.5-VL-ViT/vit.safetensors", "Wan2.2_VAE.safetensors"
LAYER = "language_model.model.layers.{}."
SIZES = {"F32": 4, "BF16": 2}


def write_sparse(path: Path, shapes: Shapes, dtype: str) -> Path:
    """A safetensors file of zeros that takes no disk: a true header, then a hole."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(entries).encode()
    raw += b" " * (-len(raw) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return path


def resident(peak: bool = False) -> int:
    """Bytes of memory that this process has, or at most had since its last `peak`."""
    kernel = Path("/proc/self")
    if not peak or not (kernel / "clear_refs").exists():
        return psutil.Process().memory_info().rss
    high = next(line for line in (kernel / "status").read_text().splitlines() if line.startswith("VmHWM"))
    (kernel / "clear_refs").write_text("5")
    return int(high.split()[1]) * 1024


@dataclass
class Weights:
    """State dicts of the three files."""

    transformer: dict[str, torch.Tensor]
    vision: dict[str, torch.Tensor]
    vae: dict[str, torch.Tensor]
    vae_file: Path

    def language(self) -> dict[str, torch.Tensor]:
        """What a text encoder's file holds: embeddings, head and vision encoder."""
        old = {"language_model.model.embed_tokens.": "embed_tokens.", "language_model.lm_head.": "lm_head."}
        moved = {
            new + key[len(start) :]: value
            for key, value in self.transformer.items()
            for start, new in old.items()
            if key.startswith(start)
        }
        return moved | {f"visual.{key}": value for key, value in self.vision.items()}

    def experts(self) -> dict[str, torch.Tensor]:
        """The transformer's file without embeddings and head."""
        return {
            key: value
            for key, value in self.transformer.items()
            if ".embed_tokens." not in key and ".lm_head." not in key
        }


VISION_CONFIG = json.dumps(tiny_checkpoint.VIT_CONFIG)


def save(weights: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if path.suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file({key: value.contiguous() for key, value in weights.items()}, path, metadata)
    return path


def link(file: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(file)
    return path


def official(root: Path, w: Weights, model: str = MODEL) -> dict:
    """The repository as downloaded. Returns arguments of `loading.load`, as every layout does."""
    save(w.vision, root / VISION).with_name("config.json").write_text(VISION_CONFIG)
    link(w.vae_file, root / VAE)
    return {"transformer": save(w.transformer, root / model)}


def nested(root: Path, w: Weights) -> dict:
    return official(root / "Lance", w) | {"folders": [root]}


def one_folder(root: Path, w: Weights) -> dict:
    return official(root, w, model="model.safetensors")


def float_table(root: Path, w: Weights) -> dict:
    """With the fixed table of positions, which is not a weight."""
    return official(root, replace(w, transformer=w.transformer | {"latent_pos_embed.pos_embed": torch.zeros(4096, 64)}))


def comfy_folders(root: Path, w: Weights) -> dict:
    link(w.vae_file, root / "vae" / "wan2.2_vae.safetensors")
    save(w.vision, root / "text_encoders" / "vit.safetensors", {"vision_config": VISION_CONFIG})
    return {
        "transformer": save(w.transformer, root / "diffusion_models" / "lance.safetensors"),
        "folders": [root / "text_encoders", root / "vae"],
    }


def text_encoder(root: Path, w: Weights) -> dict:
    return {
        "transformer": save(w.experts(), root / "diffusion_models" / "lance.safetensors"),
        "vision": save(w.language(), root / "text_encoders" / "lance.safetensors", {"vision_config": VISION_CONFIG}),
        "vae": link(w.vae_file, root / "vae" / "wan2.2_vae.safetensors"),
    }


def single_file(root: Path, w: Weights) -> dict:
    sections = {"model.diffusion_model.": w.experts(), "text_encoders.": w.language(), "vae.": w.vae}
    merged = {prefix + key: value for prefix, part in sections.items() for key, value in part.items()}
    return {"transformer": save(merged, root / "checkpoints" / "lance.safetensors", {"vision_config": VISION_CONFIG})}


def single_file_official_names(root: Path, w: Weights) -> dict:
    merged = {f"model.diffusion_model.{key}": value for key, value in w.transformer.items()}
    merged |= {f"text_encoders.visual.{key}": value for key, value in w.vision.items()}
    merged |= {f"vae.{key}": value for key, value in w.vae.items()}
    return {"transformer": save(merged, root / "lance.safetensors", {"vision_config": VISION_CONFIG})}


def bundled_vision(root: Path, w: Weights) -> dict:
    """The video file alone: its own vision encoder is better than none."""
    model = root / "Lance_3B_Video" / "model.safetensors"
    save(w.transformer | {f"vit_model.{key}": value for key, value in w.vision.items()}, model)
    model.with_name("config.json").write_text(json.dumps({"vision_config": tiny_checkpoint.VIT_CONFIG}))
    return {"transformer": model, "vae": link(w.vae_file, root / VAE)}


def bundled_and_standalone_vision(root: Path, w: Weights) -> dict:
    """The video file in the repository: the standalone vision encoder counts, the other one differs."""
    other = {f"vit_model.{key}": torch.zeros_like(value) for key, value in w.vision.items()}
    return official(root, replace(w, transformer=w.transformer | other), "Lance_3B_Video/model.safetensors")


LAYOUTS = [
    official,
    nested,
    one_folder,
    float_table,
    comfy_folders,
    text_encoder,
    single_file,
    single_file_official_names,
    bundled_vision,
    bundled_and_standalone_vision,
]


def state_dicts(loaded) -> list[dict[str, torch.Tensor]]:
    model, clip, vae = loaded
    return [
        module.state_dict() for module in (model.model.diffusion_model, clip.cond_stage_model, vae.first_stage_model)
    ]


def check_weights(loaded, w: Weights) -> None:
    """The modules hold the files' weights, all of them."""
    vae = loaded[2].first_stage_model.state_dict()
    expected_vae = {key: value.to(vae[key].dtype) for key, value in w.vae.items()}
    for found, expected in zip(state_dicts(loaded), (w.experts(), w.language(), expected_vae)):
        assert found.keys() == expected.keys()
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    visual = loaded[1].cond_stage_model.visual
    assert visual.fullatt_block_indexes == tiny_checkpoint.VIT_CONFIG["fullatt_block_indexes"]
    assert visual.blocks[0].attn.num_heads == tiny_checkpoint.VIT_CONFIG["num_heads"]


def refusal(arguments: dict) -> str:
    """The sentence with which these files are refused."""
    with pytest.raises(CheckpointError) as refused:
        loading.load(**arguments)
    message = str(refused.value)
    assert refused.type is CheckpointError and "\n" not in message and message.endswith(".") and len(message) < 500
    return message


@dataclass
class Repository:
    """The official layout, to be spoiled."""

    root: Path
    weights: Weights

    def model(self, **changes: torch.Tensor | None) -> dict:
        """Its transformer with tensors changed, or left out where None."""
        changed = {key: value for key, value in (self.weights.transformer | changes).items() if value is not None}
        return {"transformer": save(changed, self.root / MODEL)}

    def other(self, *keys: str) -> dict:
        """A file of another kind, chosen as the model."""
        tensors = {key: torch.zeros(4, 4) for key in keys}
        return {"transformer": save(tensors, self.root / "Lance_3B" / "other.safetensors")}

    def raw(self, content: bytes, name: str = MODEL) -> dict:
        (self.root / name).unlink(missing_ok=True)
        (self.root / name).write_bytes(content)
        return {"transformer": self.root / MODEL}

    def vae(self, keys: dict[str, torch.Tensor], name: str = "chosen.safetensors") -> dict:
        return {"transformer": self.root / MODEL, "vae": save(keys, self.root / name)}


def raw_safetensors(header: object, data: bytes = b"\0" * 64) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data
