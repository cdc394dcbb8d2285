"""The three that are compared: the plugin, the plugin without its context store, and the reference."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_lance.lance_model import context, diffusion, guidance, language, media, tasks
from comfyui_lance.lance_model.sequence import CONDITIONING, IM_END, Label, Sequence
from meter import forget_peak, now, peak
from safetensors.torch import load_file, save_file

PROMPT = "A red fox walks through fresh snow at dawn, long shadows, soft light on its fur, a quiet birch forest behind."
SHIFT, SEED = 3.5, 42


@dataclass(frozen=True)
class Task:
    """Sizes in pixels: (frames, height, width) of the target, and of what the vision encoder sees."""

    name: str
    target: tuple[int, int, int] | None
    vision: tuple[int, int, int] | None = None
    tokens: int = 0  # of an answer

    @property
    def grid(self) -> tuple[int, int, int]:
        frames, height, width = self.target
        return (frames - 1) // 4 + 1, height // 16, width // 16

    def __str__(self) -> str:
        frames, height, width = self.target or self.vision
        about = "" if self.target else " picture, " + str(self.tokens) + " tokens"
        return f"{self.name} {width}×{height}" + (f"×{frames}" if frames > 1 else "") + about


SMALL = (
    Task("t2i", (1, 256, 256)),
    Task("image_edit", (1, 256, 256), (1, 224, 224)),
    Task("t2v", (13, 128, 128)),
    Task("video_edit", (13, 128, 128), (13, 112, 112)),
    Task("text", None, (1, 224, 224), 16),
)
FULL = (
    Task("t2i", (1, 768, 768)),
    Task("image_edit", (1, 768, 768), (1, 672, 672)),
    Task("t2v", (50, 480, 848)),
    Task("video_edit", (61, 480, 848), (61, 448, 812)),
    Task("text", None, (1, 672, 672), 128),
)


@dataclass
class Result:
    """One run; `out` is the latent [t, h, w, 48] in the model's own space, or the ids of an answer."""

    seconds: float
    target: int
    context: int
    tokens: int
    peak: float
    out: torch.Tensor


class Sample:
    """What all engines get: noise, schedule, conditioning, and for the reference a file of the same."""

    def __init__(self, task: Task, model, clip, steps: int, cfg: float, dtype: torch.dtype, device: str):
        self.task, self.steps, self.cfg, self.device = task, steps, cfg, device
        generator = torch.Generator().manual_seed(SEED)
        seen = []
        if task.vision:
            patches, grid = media.patches(torch.rand(*task.vision, 3, generator=generator))
            latent = torch.randn(1, 48, *task.grid, generator=generator) if task.target else None
            given = model.model.process_latent_out(latent) if task.target else None
            seen = [media.Medium(patches, grid, given, Label.SOURCE if task.target else None)]
        self.media = language.embed_media(clip, seen) if seen else []
        if not task.target:
            self.request = language.Request(PROMPT, media=tuple(self.media))
            self.sequence = language.prepare(clip, self.request).question(self.request)
            return
        modality = "video" if task.target[0] > 1 else "image"
        system = tasks.EDIT[modality] if seen else tasks.TEXT_TO[modality]
        self.conds = language.encode_pair(clip, PROMPT, media=self.media, system=system)
        self.sequence, self.unconditional = (cond[0][1][CONDITIONING].with_target(task.grid) for cond in self.conds)
        u = torch.linspace(1, 0, steps + 1)
        self.sigmas = SHIFT * u / (1 + (SHIFT - 1) * u)
        # The reference draws noise for the source too, and uses the target's.
        tokens = sum(s.latents for s in self.sequence.segments)
        noise = torch.randn(tokens, 48, generator=torch.Generator(device).manual_seed(SEED), device=device, dtype=dtype)
        self.noise = noise[-self.sequence.segments[-1].latents :].float().cpu().T.reshape(1, 48, *task.grid)

    def branches(self) -> list[tuple[Sequence, int]]:
        start, end = guidance.INTERVAL
        guided = int(((self.sigmas[:-1] > start) & (self.sigmas[:-1] <= end)).sum())
        conditional = (self.sequence, self.steps)
        return [conditional] if self.cfg == 1 else [conditional, (self.unconditional, guided)]

    def write(self, path: Path, model, max_length: int) -> Path:
        """The job for the reference."""
        segments = [[int(s.label), len(s)] for s in self.sequence.segments]
        ids = self.sequence.token_ids()
        if self.task.target:  # which it closes with one more token
            segments, ids = [*segments, [int(Label.TEMPLATE), 1]], [*ids, IM_END]
        else:  # without a branch that leaves the prompt out, text before the answer is one
            segments = [*segments[:2], [int(Label.TEMPLATE), sum(n for _, n in segments[2:])]]
        tensors = {"ids": torch.tensor(ids)}
        for i, medium in enumerate(self.media):
            tensors[f"patches{i}"] = medium.patches
            if medium.latent is not None:
                latent = model.model.process_latent_in(medium.latent)
                tensors[f"latent{i}"] = latent[0].movedim(0, -1).contiguous()
        settings = {
            "task": self.task.name,
            "segments": segments,
            "steps": self.steps,
            "shift": SHIFT,
            "cfg": self.cfg,
            "interval": guidance.INTERVAL,
            "seed": SEED,
            "max_length": max_length,
            "vision_grids": [medium.grid for medium in self.media],
            "latent_grids": [s.grid for s in self.sequence.segments if s.latents],
        }
        save_file(tensors, path, {"job": json.dumps(settings)})
        return path


class Plugin:
    """The plugin through ComfyUI's own sampling, with its guidance; `naive` takes away what keeps the context and lets
    each branch compute its own."""

    def __init__(self, model, clip, naive: bool = False, compiled: bool = False):
        self.model, self.clip, self.target, self.contexts, self.tokens = model.clone(), clip, 0, 0, 0
        if compiled:
            from comfy_extras.nodes_torch_compile import TorchCompileModel

            self.model = TorchCompileModel.execute(model, "inductor").result[0]
        self.one_pass = 0 if naive else diffusion.ONE_PASS
        if naive:
            self.model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, context.STORE)
        self.compute = self.model.get_model_object("diffusion_model.context")
        self.model.add_object_patch("diffusion_model.context", self._context)
        self.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "lance_benchmark", self._apply)

    def _context(self, und, gen, *args, **kwargs):
        self.contexts += 1
        self.tokens += und.shape[1] + (gen.shape[1] if gen is not None else 0)
        return self.compute(und, gen, *args, **kwargs)

    def _apply(self, executor, x, *args, **kwargs):
        self.target += len(x)
        return executor(x, *args, **kwargs)

    def run(self, sample: Sample, max_length: int = 0) -> Result:
        self.target = self.contexts = self.tokens = 0
        diffusion.ONE_PASS = self.one_pass
        forget_peak(sample.device)
        start = now(sample.device)
        if sample.task.target:
            out = self.sample(sample)
        else:
            out = torch.tensor(language.answer(self.clip, self.model, sample.request, max_length=max_length))
        seconds = now(sample.device) - start
        return Result(seconds, self.target, self.contexts, self.tokens, peak(sample.device), out)

    def sample(self, sample: Sample) -> torch.Tensor:
        positive, negative = sample.conds
        euler, space = comfy.samplers.sampler_object("euler"), self.model.get_model_object("latent_format")
        start = torch.zeros_like(sample.noise)
        out = comfy.sample.sample_custom(
            self.model, sample.noise, sample.cfg, euler, sample.sigmas, positive, negative, start, disable_pbar=True
        )
        return space.process_in(out)[0].movedim(0, -1).float().cpu()


class Reference:
    """The reference's own inference in another process."""

    def __init__(self, folder: Path, device: str, dtype: str, model):
        interpreter = os.environ.get("LANCE_REF_PYTHON", "python")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        script = Path(__file__).with_name("reference.py")
        self.jobs, self.model = folder / "jobs", model
        self.jobs.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [interpreter, script, folder, device, dtype], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.attention = self._answer()["attention"]

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("The reference's process ended; its own message is above.")
        return json.loads(line)

    def run(self, sample: Sample, max_length: int = 0) -> Result:
        path = sample.write(self.jobs / f"{sample.task.name}.safetensors", self.model, max_length)
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        answer = self._answer()
        return Result(**answer, out=load_file(path.with_suffix(".out"))["out"])
