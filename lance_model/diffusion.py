"""The MODEL: Lance's generation side as ComfyUI samples it."""

from __future__ import annotations

import math
from functools import partial
from weakref import WeakValueDictionary

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.supported_models_base
import torch

from . import partners, patches, windows
from .compiling import in_parts
from .context import STORE, ContextStore
from .layer import PER_BRANCH
from .plan import Plan
from .positions import latent_position_tables
from .sequence import CONDITIONING, Grid, Label, Segment, Sequence, read
from .streaming import KeyValues
from .transformer import LanceTransformer

ONE_PASS = 4096  # target tokens; beyond, products fill a device by themselves, and a joint pass only takes more memory
STAYING = ("cpu", "mps", "privateuseone")  # share the computer's memory; of DirectML's, the last, no size is known

# What nodes for other models leave in a conditioning, and what to do with Lance instead. Not formatted, as the names of
# one sentence would take a line each.
UNREAD = {
    "reference_latents": "reference latents. Show it pictures with Lance Encode Image Edit or Lance Encode References",
    "unclip_conditioning": "unCLIP's pictures. Show it pictures with Lance Encode References",
    "concat_latent_image": "a picture beside the noise. Use Lance Encode Image Edit",
    "control": "ControlNets. Take the node out",
    "gligen": "GLIGEN's boxes. Set areas or masks on prompts",
    "guidance": "a guidance in the prompt. Take the node out and set CFG in the sampler",
    "concat_image": "a picture beside the noise. Use Lance Encode Image Edit",
    **dict.fromkeys(
        ("context_latents", "control_video", "face_video_pixels", "lq_latent", "pose_video_latent", "reference_motion",
         "reference_latents_text_embeds", "stable_cascade_prior", "time_dim_replace", "vace_frames"),
        "pictures that are encoded for another model. Use Lance Encode Image Edit, Lance Encode References or Lance "
        "Image to Video",
    ),
    **dict.fromkeys(("audio_embed", "reference_audio_timbre_latents"), "sound. Take the node out"),
}  # fmt: skip


class Branches(comfy.conds.CONDRegular):
    """The sequences of branches that go through the model together, each with an equal share of the batch."""

    def __init__(self, cond: tuple[Sequence, ...], together: bool):
        super().__init__(cond)
        self.together = together
        self._windows = WeakValueDictionary()  # by the latent frames that each sees

    def _copy_with(self, cond: tuple[Sequence, ...]) -> Branches:
        return Branches(cond, self.together)

    def without_media(self) -> Branches:
        return self._copy_with(tuple(sequence.without_media for sequence in self.cond))

    def process_cond(self, batch_size, **kwargs) -> Branches:
        return self

    def can_concat(self, other: Branches) -> bool:
        return self.together and other.together

    def window(self, frames: list[int]) -> Branches:
        """Of one branch, for these latent frames of its target; the same sequence as long as its context is kept."""
        sequence = self._windows.get(tuple(frames)) or windows.cut(self.cond[0], frames)
        self._windows[tuple(frames)] = sequence
        return self._copy_with((sequence,))

    def concat(self, others: list[Branches]) -> tuple[Sequence, ...]:
        return sum((other.cond for other in others), self.cond)

    def size(self) -> list[int]:
        """Read by `Lance.memory_required`."""
        return _context_shape(self.cond[0])


def _turned(batch: torch.Tensor, branches: int) -> torch.Tensor:
    """The branches of a batch in the opposite order."""
    return torch.cat(batch.chunk(branches)[::-1])


def _context_tokens(sequence: Sequence) -> int:
    return sum(len(s) for s in sequence.context)


def _context_shape(sequence: Sequence) -> list[int]:
    """1, latent frames of an edit's source, else 1, and context tokens for each."""
    frames = max((s.grid[0] for s in sequence.segments if s.label == Label.SOURCE), default=1)
    return [1, frames, math.ceil(_context_tokens(sequence) / frames)]


class Lance(comfy.model_base.BaseModel):
    """Rectified flow on Wan 2.2 latents [B, 48, t, h, w], conditioned on an interleaved sequence."""

    def __init__(self, model_config, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=LanceTransformer)

    def extra_conds(self, **kwargs) -> dict:
        noise = kwargs["noise"]
        self._check_latent(tuple(noise.shape))
        if self.current_patcher is not None:
            windows.check_batch(self.current_patcher.model_options.get("context_handler"), noise.shape)
        together = kwargs.get(patches.TOGETHER, False) or noise[:, :1].numel() <= ONE_PASS
        out = {"sequences": Branches((self._sequence(kwargs),), together)}
        mask = kwargs.get("denoise_mask")
        if mask is not None:
            out["denoise_mask"] = comfy.conds.CONDNoiseShape(mask[:, :1])
        return out

    def _check_latent(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 5:  # ComfyUI packs video and sound into one row
            raise ValueError(
                "Lance samples the latent of a picture or a clip, but this one is another model's, with sound or "
                "several parts. Use Empty Lance Latent."
            )
        if 0 in shape:
            raise ValueError(
                f"There is nothing in this latent: it is {_size(shape[2:])}. A node before the sampler has cut all of "
                "it away."
            )

    def _sequence(self, conditioning: dict) -> Sequence:
        sequence, embeddings = read(conditioning), conditioning.get("cross_attn")
        if sequence is None:
            raise ValueError(
                "Lance cannot read this conditioning: it was not encoded with Lance's CLIP. "
                "Connect the CLIP output of Load Lance to the node that encodes the prompt, give a guider that takes "
                "two conditionings both, and leave schedule_clip off in Set CLIP Hooks."
            )
        for key, instead in UNREAD.items():
            # InpaintModelConditioning adds its picture for models that do not read the latent's own mask.
            masked = key == "concat_latent_image" and conditioning.get("denoise_mask") is not None
            if conditioning.get(key) is not None and not masked:
                raise ValueError(f"Lance does not read {instead}.")
        encoded = conditioning[CONDITIONING].embeddings
        if embeddings is not encoded and embeddings.any() and not torch.equal(embeddings.cpu(), encoded.cpu()):
            raise ValueError(
                "A node between the prompt and the sampler has changed Lance's conditioning (averaging and "
                "concatenating do not work on an interleaved sequence). Write one prompt instead, or combine with "
                "Conditioning (Combine)."
            )
        partners.check_width(embeddings.shape[-1], self.diffusion_model.hidden)
        return sequence

    def resize_cond_for_context_window(self, cond_key, cond_value, window, x_in, device, retain_index_list=[]):
        edit = cond_key == "sequences" and windows.is_edit(cond_value.cond[0])
        if not (edit or cond_key == "denoise_mask") or window.dim == 0:  # parts of a batch see all that it is told
            return None
        if edit and window.dim != windows.TIME:
            raise ValueError(windows.NOT_IN_TIME)
        handler = self.current_patcher.model_options["context_handler"]
        if retain_index_list != handler.latent_retain_index_list:
            raise ValueError(windows.RETAINED_APART)
        if not edit:
            return None
        self._check_source(cond_value.cond[0], tuple(x_in.shape[2:]))
        return cond_value.window(windows.shown(window, x_in.shape[windows.TIME], retain_index_list))

    def process_timestep(self, timestep, denoise_mask=None, **kwargs):
        """τ in [0, 1]: one per sample, or one per token where a mask keeps some places clean (τ = 0)."""
        tau = timestep / getattr(self.model_sampling, "multiplier", 1.0)
        return tau if denoise_mask is None else tau[:, None] * denoise_mask.flatten(1)

    def process_latent_in(self, latent):
        if latent.shape[1] != self.latent_format.latent_channels:
            raise ValueError(
                f"Lance works on Wan 2.2 latents of 48 channels, but this latent has {latent.shape[1]}. Encode the "
                "picture or clip with the VAE of Load Lance."
            )
        return super().process_latent_in(latent)

    def scale_latent_inpaint(self, sigma, noise, latent_image, **kwargs):
        return latent_image

    def _check_options(self, batch: int, sequences: tuple[Sequence, ...], transformer_options: dict) -> None:
        """Raises ValueError for what nodes do to a pass that Lance cannot do."""
        if batch % len(sequences):
            raise ValueError(
                f"Lance was asked for {batch} latents with {len(sequences)} prompts, because a node that wraps the "
                "MODEL has split the batch. Take that node out, or set CFG to 1."
            )
        window = transformer_options.get("context_window")
        if window is not None and window.dim == 1:
            raise ValueError(windows.ELSEWHERE)
        patches.check(transformer_options, len(self.diffusion_model.layers))

    def _apply_model(
        self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, sequences=(), **kwargs
    ):
        n, order = len(sequences), transformer_options.get("cond_or_uncond", [0])
        self._check_options(len(x), sequences, transformer_options)
        if order[0] > order[-1]:
            # ComfyUI batches the last branch first. Step caches go by the first, and it has to be the one that is left
            # outside the CFG interval.
            turned = {key: transformer_options[key][::-1] for key in PER_BRANCH if key in transformer_options}
            kwargs = {key: _turned(value, n) if torch.is_tensor(value) else value for key, value in kwargs.items()}
            kwargs |= {"transformer_options": transformer_options | turned, "sequences": sequences[::-1]}
            return _turned(self._apply_model(_turned(x, n), _turned(t, n), control=control, **kwargs), n)
        store = transformer_options.get(STORE)
        if store is None or comfy.model_management.in_training:  # training changes the weights in every step
            store = ContextStore()
        device, dtype, grid = x.device, self.get_dtype_inference(), tuple(x.shape[2:])
        past, variant = [], (self, device, *self._hook_strengths())
        for sequence in sequences:
            compute = partial(self._context, store, sequence, x, dtype, transformer_options)
            room = partial(self._finds_room, sequence, x)
            past.append(store.context(sequence, variant, transformer_options.get("sigmas"), compute, room))
        share = len(x) // n
        # Windows of one length place their targets alike.
        wholes = tuple(sequence.whole or sequence for sequence in sequences)
        brackets, frequencies, tables = store.target(
            (self, wholes, share, grid, device), lambda: self._targets(sequences, share, grid, device, dtype)
        )
        with in_parts(self) as compiled:
            return super()._apply_model(
                x,
                t,
                control=control,
                transformer_options=transformer_options,
                brackets=brackets,
                frequencies=frequencies,  # a tuple: ComfyUI casts lists to the model's dtype
                tables=tables,
                past=past,
                compiled=compiled,
                **kwargs,
            )

    def _hook_strengths(self) -> list[tuple]:
        """What identifies the weights in use while hooks (scheduled LoRAs) change them."""
        hooks = self.current_patcher.current_hooks if self.current_patcher is not None else None
        return [(hook.hook_ref, hook.strength) for hook in hooks.hooks] if hooks is not None else []

    def prefetching(self) -> dict:
        """What ComfyUI adds to the transformer_options of a pass, for passes that are not sampling's."""
        patcher = self.current_patcher
        return {"prefetch_dynamic_vbars": patcher is not None and patcher.is_dynamic()}

    def _context(
        self, store: ContextStore, sequence: Sequence, x, dtype, transformer_options, first: int, past: list[KeyValues]
    ) -> KeyValues:
        """Keys and values of the context's segments from `first` on, for passes over latents like x."""
        plan, device = Plan.of(sequence.without_target(), first), x.device
        # What waits pinned does so until the run's end, but windows may move on.
        offload = store.waiting.offload if sequence.whole is None else torch.Tensor.cpu
        gen = [self._clean_latents(s, device, dtype) for s in plan.segments if s.latents]
        known, _ = self.diffusion_model.context(
            sequence.embeddings[:, plan.und].to(device, dtype),
            torch.cat(gen, dim=1) if gen else None,
            plan.frequencies(self.diffusion_model.head_dim, device),
            plan.runs,
            past,
            transformer_options | self.prefetching(),
            keep=None if self._stays(sequence, x) else offload,
        )
        return known

    def context_bytes(self, tokens: int) -> int:
        """Of their keys and values in all layers."""
        model, size = self.diffusion_model, comfy.model_management.dtype_size(self.get_dtype_inference())
        return size * tokens * 2 * model.kv_heads * model.head_dim * len(model.layers)

    def _stays(self, sequence: Sequence, x: torch.Tensor) -> bool:
        """Whether a context's keys and values find room on the device, beside what a pass takes. Else they wait in the
        computer's memory: each then moves once in a pass of its branch, where weights that left in their stead would
        move in every pass."""
        if x.device.type in STAYING:
            return True
        patcher = self.current_patcher
        # Under dynamic paging the patcher knows how much its weights would make room for.
        ask = getattr(patcher, "get_free_memory", None) or comfy.model_management.get_free_memory
        tokens = _context_tokens(sequence)
        needed = self._activations(x.shape, [tokens]) + self.context_bytes(tokens)
        return needed <= ask(x.device)

    def _finds_room(self, sequence: Sequence, x: torch.Tensor) -> bool:
        """Whether a context's keys and values leave as much free as they take, unless they stay on a device of its
        own."""
        if x.device.type not in STAYING and self._stays(sequence, x):
            return True
        free = comfy.model_management.get_free_memory(torch.device("cpu"))
        return 2 * self.context_bytes(_context_tokens(sequence)) <= free

    def _clean_latents(self, segment: Segment, device, dtype) -> torch.Tensor:
        latent = self.process_latent_in(segment.latent.to(device, torch.float32)).to(dtype)
        tables = latent_position_tables(segment.grid, self.diffusion_model.hidden, device, dtype)
        return self.diffusion_model.embed_latents(latent, torch.zeros(1, device=device), tables)

    def _check_source(self, sequence: Sequence, grid: Grid) -> None:
        source = [s.grid for s in sequence.segments if s.label == Label.SOURCE]
        if source and source != [grid]:
            raise ValueError(
                f"An edit's latent must be as large as its source: it is {_size(grid)}, the source "
                f"{_size(source[0])}. Connect the latent of the node that encoded the edit; areas do not work on "
                "edits, masks do (with set_cond_area at default)."
            )

    def _targets(self, sequences: tuple[Sequence, ...], share: int, grid: Grid, device, dtype) -> tuple:
        """Of the targets: bracket embeddings, rotary frequencies of brackets and latents, one for each of the batch or
        one for all; and the latents' position tables."""
        targets = []
        for sequence in sequences:
            self._check_source(sequence, grid)
            plan = Plan.of(sequence.with_target(grid), -1)
            frequencies = plan.frequencies(self.diffusion_model.head_dim, device)
            target = sequence.embeddings[:, plan.und].to(device, dtype), *frequencies
            targets += [target] * (share if len(sequences) > 1 else 1)
        tables = latent_position_tables(grid, self.diffusion_model.hidden, device, dtype)
        brackets, und, gen = (torch.cat(rows) for rows in zip(*targets))
        return brackets, (und, gen), tables

    def extra_conds_shapes(self, **kwargs) -> dict:
        sequence = kwargs.get(CONDITIONING)
        return {} if sequence is None else {"sequences": _context_shape(sequence)}

    def memory_required(self, input_shape, cond_shapes={}) -> float:
        """Bytes beside the weights: of activations, and of the contexts' keys and values if they fit as well."""
        # A context window has as much of an edit's source as of its target.
        contexts = [shape[2] * min(shape[1], input_shape[2]) for shape in cond_shapes.get("sequences", [])]
        activations, kept = self._activations(input_shape, contexts), self.context_bytes(sum(contexts))
        device = comfy.model_management.get_torch_device()
        if device.type in STAYING:
            return activations + kept
        room = comfy.model_management.get_total_memory(device) - comfy.model_management.extra_reserved_memory()
        fits = comfy.model_management.module_size(self.diffusion_model) + activations + kept <= room
        return activations + (kept if fits else 0)

    def _activations(self, input_shape, contexts: list[int]) -> float:
        """Bytes that a pass, or the computation of a context, takes at its widest.

        A token holds the three inner vectors of SwiGLU beside a few of the hidden size, and its keys and values once
        joined with the context's.
        """
        model, size = self.diffusion_model, comfy.model_management.dtype_size(self.get_dtype_inference())
        target = input_shape[0] * math.prod(input_shape[2:])
        kv = 2 * model.kv_heads * model.head_dim
        widest = target * (3 * model.inner + 8 * model.hidden + 2 * kv + 4 * model.head_dim)
        widest = max(widest, max(contexts, default=0) * (3 * model.inner + 8 * model.hidden + 2 * kv))
        return 1.2 * size * (widest + input_shape[0] * sum(contexts) * 2 * kv)

    def answer_memory(self, question: int, length: int) -> float:
        """Bytes beside the weights for an answer of up to `length` tokens to a question of that many."""
        return self._activations([0, 1], [question]) + self.context_bytes(question + length)


def _size(grid: Grid) -> str:
    return "x".join(map(str, reversed(grid)))


class LanceConfig(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a model: noise schedule, latent space, dtypes."""

    unet_config = {"image_model": "lance"}
    unet_extra_config = {}
    sampling_settings = {"shift": 3.5, "multiplier": 1.0}
    vae_key_prefix = ["vae."]
    text_encoder_key_prefix = ["text_encoders."]
    latent_format = comfy.latent_formats.Wan22
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def get_model(self, state_dict, prefix="", device=None) -> Lance:
        return Lance(self, device=device)
