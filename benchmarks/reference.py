"""Runs the reference implementation's own inference for run.py, in a process of its own and by its own interpreter.

`python reference.py CHECKPOINT_FOLDER DEVICE DTYPE`, with LANCE_REF naming a checkout of github.com/bytedance/Lance.
Each line on stdin names a job file (tensors and settings of one sample); each line on stdout is a JSON answer.

- The path is what its inference_lance.sh runs: `validation_gen_KVcache` and `validation_und_KVcache`.
- Where flash-attn is not installed, PyTorch's attention stands in for it, segment by segment.
- That path casts to bfloat16 wherever it goes. To run it in float32, this process calls float32 by that name.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import torch
from meter import forget_peak, now, peak
from safetensors import safe_open
from safetensors.torch import load_file, save_file

VISION_START, VISION_END, VIDEO_PAD, IM_START, IM_END = 151652, 151653, 151656, 151644, 151645
TOKENS = {"start_of_image": VISION_START, "end_of_image": VISION_END, "bos_token_id": IM_START, "eos_token_id": IM_END}
TARGET, SOURCE, VISION = 1, 2, 4  # modality labels
MODES = {TARGET: "noise", SOURCE: "full_noise", VISION: "full"}


def attend(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=False, **kwargs):
    """flash_attn_varlen_func: q [n, heads, d] and k, v [m, kv_heads, d], packed; the causal mask ends bottom right."""
    out, starts, key_starts = [], [0, len(q)], [0, len(k)]
    if len(cu_seqlens_q) > 2:  # else no need to wait for the device
        starts, key_starts = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for i in range(len(starts) - 1):
        queries = q[starts[i] : starts[i + 1]].transpose(0, 1)[None]
        keys, values = (x[key_starts[i] : key_starts[i + 1]].transpose(0, 1)[None] for x in (k, v))
        n, m = queries.shape[2], keys.shape[2]
        mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n) if causal and n > 1 else None
        attended = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, enable_gqa=queries.shape[1] != keys.shape[1]
        )
        out.append(attended[0].transpose(0, 1))
    return torch.cat(out)


def stand_in_for_flash_attention() -> None:
    module = types.ModuleType("flash_attn")
    module.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    module.flash_attn_varlen_func = attend
    sys.modules["flash_attn"] = module


def load(folder: Path, device: str, dtype: torch.dtype):
    """The reference's model, built as its inference_lance.py does with the switches of inference_lance.sh."""
    from common.utils.misc import AutoEncoderParams
    from config.config_factory import InferenceArguments
    from modeling.lance import Lance, LanceConfig, Qwen2ForCausalLM
    from modeling.qwen2.modeling_qwen2 import Qwen2Config
    from modeling.vit.qwen2_5_vl_vit import Qwen2_5_VisionTransformerPretrainedModel
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

    llm = Qwen2Config.from_json_file(folder / "Lance_3B" / "llm_config.json")
    llm.layer_module, llm.tie_word_embeddings, llm.freeze_und = "Qwen2MoTDecoderLayer", False, False
    llm.qk_norm = llm.qk_norm_und = llm.qk_norm_gen = llm.apply_qwen_2_5_vl_pos_emb = True
    vision = Qwen2_5_VLVisionConfig.from_pretrained(folder / "Qwen2.5-VL-ViT")
    vae = AutoEncoderParams(downsample_spatial=16, downsample_temporal=4, z_channels=48)
    config = LanceConfig(
        llm_config=llm, vit_config=vision, vae_config=vae, latent_patch_size=(1, 1, 1), max_num_frames=121,
        max_latent_size=64,
    )  # fmt: skip
    arguments = InferenceArguments(apply_qwen_2_5_vl_pos_emb=True)
    with torch.device(device):
        language = Qwen2ForCausalLM(llm)
    encoder = Qwen2_5_VisionTransformerPretrainedModel(vision)
    model = Lance(language, encoder, "qwen_2_5_vl_original", config, training_args=arguments)
    weights = load_file(folder / "Lance_3B" / "model.safetensors")
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert not unknown and not [key for key in missing if not key.startswith(("vit_model.", "latent_pos_embed."))]
    encoder.load_state_dict(load_file(folder / "Qwen2.5-VL-ViT" / "vit.safetensors"))
    return model.to(device, dtype).eval()


class Job:
    """One sample, packed as the reference's data set packs it: segments as (label, tokens), and what is in them."""

    def __init__(self, path: Path, device: str):
        with safe_open(path, "pt", device=device) as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}
            self.settings = json.loads(file.metadata()["job"])
        self.ids, self.device = self.tensors["ids"], device
        self.labels, self.lengths = zip(*self.settings["segments"])
        inner = torch.zeros(len(self.ids), dtype=torch.int64, device=device)  # the label of what is between brackets
        end = 0
        for label, length in zip(self.labels, self.lengths):
            end += length
            if label in MODES:
                inner[end - length + 1 : end - 1] = label
        self.inner = inner

    def places(self, *labels: int) -> torch.Tensor:
        return torch.isin(self.inner, torch.tensor(labels, device=self.device)).nonzero()[:, 0]

    def packed(self) -> dict:
        """What generation and understanding both take."""
        seen = [self.tensors[key] for key in sorted(self.tensors) if key.startswith("patches")]
        grids = torch.tensor(self.settings["vision_grids"], dtype=torch.int64, device=self.device)
        return {
            "val_packed_text_ids": self.ids,
            "val_packed_text_indexes": (self.inner == 0).nonzero()[:, 0],
            "val_packed_position_ids": torch.arange(len(self.ids), device=self.device),
            "val_packed_vit_tokens": seen or None,
            "val_split_lens": list(self.lengths),
            "val_attn_modes": [MODES.get(label, "causal") for label in self.labels],
            "val_sample_lens": [len(self.ids)],
            "val_sample_N_target": [1],
            "new_token_ids": TOKENS,
            "device": self.device,
            "apply_qwen_2_5_vl_pos_emb": True,
            "image_token_id": VIDEO_PAD,
            ("val_vit_video_grid_thw" if self.settings["task"] == "text" else "vit_video_grid_thw"): grids,
        }

    def generate(self, model, dtype: torch.dtype) -> torch.Tensor:
        """Latent [t, h, w, 48] in the model's own space."""
        settings, latents = self.settings, self.settings["latent_grids"]
        labels = torch.cat([torch.full((n,), label) for label, n in zip(self.labels, self.lengths)]).to(self.device)
        given = [self.tensors[key].to(dtype) for key in sorted(self.tensors) if key.startswith("latent")]
        grids = [*settings["vision_grids"], *([t, 2 * h, 2 * w] for t, h, w in latents)]
        out = model.validation_gen_KVcache(
            **self.packed(),
            dtype=dtype,
            val_packed_vit_token_indexes=self.places(VISION),
            val_packed_vae_token_indexes=self.places(TARGET, SOURCE),
            val_mse_loss_indexes=self.places(TARGET),
            val_padded_latent=[*given, torch.zeros(*latents[-1], 48, device=self.device, dtype=dtype)],
            video_grid_thw=torch.tensor([grids], device=self.device),
            video_sizes=[[4 * (t - 1) + 1, 16 * h, 16 * w] for t, h, w in latents],
            sample_modality=labels,
            sample_task=torch.full_like(labels, 2 if SOURCE in self.labels else 0),
            timestep_shift=settings["shift"],
            num_timesteps=settings["steps"],
            cfg_interval=settings["interval"],
            cfg_text_scale=settings["cfg"],
            validation_noise_seed=settings["seed"],
            max_samples=1,
        )
        return out[0][-1].float()

    def answer(self, model, dtype: torch.dtype) -> torch.Tensor:
        """Ids of the greedy answer."""
        ids, _, _ = model.validation_und_KVcache(
            **self.packed(),
            dtype=dtype,
            val_ce_loss_indexes=torch.empty(0, dtype=torch.int64, device=self.device),
            val_sample_type=["und"],
            max_length=self.settings["max_length"],
            pad_token_id=IM_END,
            vocab_size=151665,
        )
        return ids[0][:, 0]


class Passes:
    """Counts passes of the decoder, and the tokens in those that fill the context."""

    def __init__(self, decoder):
        self.forward, self.target, self.context, self.tokens = decoder.forward_inference, 0, 0, 0
        decoder.forward_inference = self

    def __call__(self, *args, **kwargs):
        if kwargs["update_past_key_values"]:
            self.context, self.tokens = self.context + 1, self.tokens + kwargs["packed_query_sequence"].shape[0]
        else:
            self.target += 1
        return self.forward(*args, **kwargs)


@torch.no_grad()
def main(folder: str, device: str, name: str) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # the reference prints
    torch.set_num_threads(1)
    dtype = getattr(torch, name)
    if dtype == torch.float32:
        torch.bfloat16 = torch.float32
    sys.path.insert(0, os.environ["LANCE_REF"])
    flash = importlib.util.find_spec("flash_attn") is not None
    if not flash:
        stand_in_for_flash_attention()
    model = load(Path(folder), device, dtype)
    passes = Passes(model.language_model)
    print(json.dumps({"attention": "flash-attn" if flash else "PyTorch's attention"}), file=answers, flush=True)
    for line in sys.stdin:
        job = Job(Path(line.strip()), device)
        passes.target = passes.context = passes.tokens = 0
        forget_peak(device)
        with torch.autocast(device, torch.bfloat16, enabled=name == "bfloat16"):
            start = now(device)
            out = (job.answer if job.settings["task"] == "text" else job.generate)(model, dtype).cpu()
            seconds = now(device) - start
        save_file({"out": out.contiguous()}, Path(line.strip()).with_suffix(".out"))
        answer = {"seconds": seconds, "target": passes.target, "context": passes.context, "tokens": passes.tokens}
        print(json.dumps(answer | {"peak": peak(device)}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
