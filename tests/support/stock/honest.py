"""Random graphs as people build them: from ComfyUI's nodes and ours, with settings that are all allowed."""

from __future__ import annotations

import random

from . import graphs
from .graphs import BASE, NEGATIVE, Socket, default, interface, node
from .host import LORA, Graph

COLOURS = ("red", "blue", "green", "purple", "orange")
SHAPES = ("circle", "square", "star", "heart")
PLACES = ("", " on the left", " on the right", " at the top", " in the centre")
PATCHES = (
    "APG", "CFGNorm", "CFGOverride", "CFGZeroStar", "DifferentialDiffusion", "EasyCache", "Epsilon Scaling", "FreSca",
    "LanceGuidance", "LoraLoaderModelOnly", "Mahiro", "ModelComputeDtype", "ModelSamplingAuraFlow",
    "ModelSamplingSD3", "NAGuidance", "PerturbedAttentionGuidance", "RescaleCFG",
    "SkipLayerGuidanceDiTSimple", "SkipLayerGuidanceSD3", "TCFG",
)  # fmt: skip
FOR_CLIPS = ("WanContextWindowsManual", "LTXVContextWindows")
COMBINATORS = (
    "ConditioningCombine", "ConditioningSetArea", "ConditioningSetAreaPercentage", "ConditioningSetAreaStrength",
    "ConditioningSetMask", "ConditioningSetProperties", "ConditioningSetPropertiesAndCombine",
    "ConditioningSetTimestepRange",
)  # fmt: skip
LATENTS = (
    "LatentAdd", "LatentInterpolate", "LatentMultiply", "LatentSubtract", "LatentUpscaleBy",
    "RepeatLatentBatch", "SetLatentNoiseMask",
)  # fmt: skip
SCHEDULERS = ("BasicScheduler", "BetaSamplingScheduler", "LanceScheduler")
GUIDERS = ("BasicGuider", "CFGGuider", "DualCFGGuider", "PerpNegGuider")


class Builder:
    """One graph, node by node. What it chooses depends on the seed alone."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.graph: Graph = {"loader": BASE["loader"]}
        self.model, self.clip, self.vae = (["loader", i] for i in range(3))

    def add(self, class_type: str, **inputs) -> list:
        name = str(len(self.graph))
        self.graph[name] = node(class_type, **inputs)
        return [name, 0]

    def maybe(self, share: float) -> bool:
        return self.random.random() < share

    # ---- Settings

    def setting(self, socket: Socket):
        """A value near the default, within the limits."""
        if socket.type == "COMBO":
            return self.random.choice(socket.options["options"])
        if socket.type == "BOOLEAN":
            return self.maybe(0.5)
        value, options = default(socket), socket.options
        if socket.type == "STRING" or socket.name in graphs.SMALL:
            return value
        low, high = options.get("min", 0), options.get("max", 1)
        low, high = max(low, min(value / 2, value - 1)), min(high, max(value * 2, value + 1))
        if socket.type == "FLOAT":
            return round(self.random.uniform(low, high), 3)
        step = options.get("step", 1) or 1
        return int(options.get("min", 0) + (self.random.uniform(low, high) - options.get("min", 0)) // step * step)

    def settings(self, class_type: str) -> dict:
        widgets = [socket for socket in interface(class_type) if socket.type in graphs.WIDGETS]
        return {socket.name: self.setting(socket) for socket in widgets}

    # ---- Parts

    def prompt(self) -> str:
        choose = self.random.choice
        return f"a {choose(COLOURS)} {choose(SHAPES)}{choose(PLACES)} on a {choose(COLOURS)} background"

    def picture(self) -> list:
        image = self.random.choice(["lance_circle.png", "lance_circle_right.png", "lance_pair.png", "lance_star.png"])
        return self.add("LoadImage", image=image)

    def mask(self) -> list:
        return self.add("ImageToMask", image=self.picture(), channel=self.random.choice(["red", "green", "blue"]))

    def encoded(self, picture: list) -> list:
        if self.maybe(0.3):
            return self.add("VAEEncodeTiled", pixels=picture, vae=self.vae, **self.settings("VAEEncodeTiled"))
        return self.add("VAEEncode", pixels=picture, vae=self.vae)

    def words(self, target: str) -> tuple[list, list]:
        if self.maybe(0.2):
            return tuple(self.add("CLIPTextEncode", clip=self.clip, text=text) for text in (self.prompt(), ""))
        negative = self.prompt() if self.maybe(0.2) else ""
        encode = {"clip": self.clip, "target": target, "prompt": self.prompt(), "negative_prompt": negative}
        link = self.add("LanceEncode", **encode)
        return link, [link[0], 1]

    def empty(self, frames: int) -> list:
        size = {"size": "demonstration 64x64"}
        if self.maybe(0.4):
            sides = {f"size.{side}": self.random.choice([48, 64, 80, 96]) for side in ("width", "height")}
            size = {"size": "custom", **sides}
        return self.add("EmptyLanceLatent", **size, frames=frames, batch_size=self.random.choice([1, 1, 2]))

    # ---- Tasks: (positive, negative, latent, whether the latent is a picture already)

    def from_text(self):
        return (*self.words("image"), self.empty(1), False)

    def clip_from_text(self):
        return (*self.words("video"), self.empty(self.random.choice([5, 9, 17])), False)

    def image_to_image(self):
        return (*self.words("image"), self.encoded(self.picture()), True)

    def inpainting(self):
        positive, negative = self.words("image")
        if self.maybe(0.5):
            inputs = {"pixels": self.picture(), "vae": self.vae, "mask": self.mask()}
            latent = self.add("VAEEncodeForInpaint", **inputs, grow_mask_by=self.random.choice([0, 6]))
            return positive, negative, latent, True
        inputs = {"positive": positive, "negative": negative, "vae": self.vae, "pixels": self.picture()}
        link = self.add("InpaintModelConditioning", **inputs, mask=self.mask(), noise_mask=self.maybe(0.8))
        return link, [link[0], 1], [link[0], 2], True

    def edit(self):
        mask = {"mask": self.mask()} if self.maybe(0.3) else {}
        link = self.add(
            "LanceEncodeEdit", clip=self.clip, vae=self.vae, image=self.picture(), prompt="make the circle blue",
            resolution=self.random.choice(["demonstration 64x64", "keep size"]), **mask,
        )  # fmt: skip
        return link, [link[0], 1], [link[0], 2], False

    def video_edit(self):
        frames = self.add("RepeatImageBatch", image=self.picture(), amount=self.random.choice([1, 6, 9]))
        video = self.add("CreateVideo", images=frames, fps=12.0)
        link = self.add(
            "LanceEncodeVideoEdit", clip=self.clip, vae=self.vae, video=video, prompt="make the circle green",
            resolution="keep size", sample_fps=12.0, max_seconds=1.0,
        )  # fmt: skip
        return link, [link[0], 1], [link[0], 2], False

    def subjects(self):
        pictures = {f"images.image{i}": self.picture() for i in range(self.random.choice([1, 2]))}
        link = self.add(
            "LanceEncodeReferences", clip=self.clip, vae=self.vae, prompt=self.prompt(), target="image",
            resolution="demonstration 64x64", **pictures,
        )  # fmt: skip
        return link, [link[0], 1], self.empty(1), False

    def image_to_video(self):
        given = {"start": self.picture()} if self.maybe(0.7) else {}
        given |= {"end": self.picture()} if self.maybe(0.3) or not given else {}
        frames = {"frames": self.random.choice([9, 13]), "resolution": "demonstration 64x64", "batch_size": 1}
        return (*self.words("video"), self.add("LanceImageToVideo", vae=self.vae, **given, **frames), False)

    # ---- What people put between

    def patch(self, clip: bool) -> None:
        name = self.random.choice(PATCHES + FOR_CLIPS * clip)
        settings = self.settings(name) | ({"lora_name": LORA} if "Lora" in name else {})
        self.model = self.add(name, model=self.model, **settings)

    def combine(self, positive: list) -> list:
        name = self.random.choice(COMBINATORS)
        inputs = self.settings(name)
        for socket in interface(name):
            if socket.type == "CONDITIONING":
                inputs[socket.name] = positive
                positive = self.add("CLIPTextEncode", clip=self.clip, text=self.prompt())
            elif socket.type == "MASK" and (socket.required or self.maybe(0.5)):
                inputs[socket.name] = self.mask()
        return self.add(name, **inputs)

    def change(self, latent: list) -> list:
        name = self.random.choice(LATENTS)
        inputs = self.settings(name)
        for socket in interface(name):
            if socket.type == "LATENT":
                inputs[socket.name] = latent
                latent = self.encoded(self.picture())
            elif socket.type == "MASK":
                inputs[socket.name] = self.mask()
        return self.add(name, **inputs)

    # ---- Sampling

    def seed(self) -> int:
        return self.random.randrange(2**32)

    def ksampler(self, positive, negative, latent, denoise: float) -> list:
        settings = self.settings("KSampler") | {"seed": self.seed(), "steps": self.random.randint(2, 4)}
        settings |= {"cfg": round(self.random.uniform(1, 7), 1), "denoise": denoise}
        links = {"model": self.model, "positive": positive, "negative": negative, "latent_image": latent}
        return self.add("KSampler", **settings, **links)

    def custom(self, positive, negative, latent, denoise: float) -> list:
        links = {"model": self.model, "positive": positive, "negative": negative}
        name = self.random.choice(GUIDERS)
        inputs = self.settings(name)
        for socket in interface(name):
            if socket.type in ("MODEL", "CONDITIONING"):
                other = negative if any(word in socket.name for word in NEGATIVE) else positive
                inputs[socket.name] = links.get(socket.name, other)
        guider, schedule = self.add(name, **inputs), self.random.choice(SCHEDULERS)
        settings = self.settings(schedule) | {"steps": self.random.randint(2, 4)}
        settings |= {"denoise": denoise} if "denoise" in settings else {}
        return self.add(
            "SamplerCustomAdvanced", guider=guider, latent_image=latent,
            noise=self.add("RandomNoise", noise_seed=self.seed()),
            sigmas=self.add(schedule, model=self.model, **settings),
            sampler=self.add("KSamplerSelect", **self.settings("KSamplerSelect")),
        )  # fmt: skip

    def sampled(self, *parts) -> list:
        return (self.custom if self.maybe(0.35) else self.ksampler)(*parts)


TASKS = (
    Builder.from_text, Builder.from_text, Builder.clip_from_text, Builder.image_to_image, Builder.inpainting,
    Builder.edit, Builder.video_edit, Builder.subjects, Builder.image_to_video,
)  # fmt: skip


def build(seed: int) -> Graph:
    """A graph whose Look nodes see the picture, the sampled latent and the latent that was given to sampling."""
    builder = Builder(seed)
    task = builder.random.choice(TASKS)
    positive, negative, latent, known = task(builder)
    for _ in range(builder.random.choice([0, 0, 1, 2])):
        builder.patch(task in (Builder.clip_from_text, Builder.image_to_video))
    if builder.maybe(0.3):
        positive = builder.combine(positive)
    if builder.maybe(0.25):
        latent = builder.change(latent)
    denoise = round(builder.random.uniform(0.3, 1), 2) if known else 1.0
    sampled = builder.sampled(positive, negative, latent, denoise)
    if builder.maybe(0.15):
        latent = builder.add("LatentUpscaleBy", samples=sampled, upscale_method="bilinear", scale_by=1.5)
        sampled = builder.sampled(positive, negative, latent, 0.6)
    decode = builder.random.choice(["VAEDecode", "VAEDecode", "VAEDecodeTiled"])
    picture = builder.add(decode, samples=sampled, vae=builder.vae, **builder.settings(decode))
    for name, value in (("picture", picture), ("sampled", sampled), ("given", latent)):
        builder.graph[name] = node("Look", name=name, value=value)
    return builder.graph
