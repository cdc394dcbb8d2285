"""A graph around any node: what it needs before it, and behind it the sampling and decoding of what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import nodes

from .host import LORA, Graph

SIDE, FRAMES, STEPS = 64, 5, 3
OURS = ("MODEL", "CLIP", "VAE", "CONDITIONING", "LATENT", "GUIDER", "SIGMAS", "SAMPLER")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
DYNAMIC, GROWING = "COMFY_DYNAMICCOMBO_V3", "COMFY_AUTOGROW_V3"
NODE = "node"  # the id of the node under test


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


PROMPT, OTHER_PROMPT = "a red circle in the centre on a black background", "a blue square on the left"
SIZE = {"size": "demonstration 64x64", "batch_size": 1}
GUIDED = {"cfg": 4.0, "model": ["loader", 0], "positive": ["prompt", 0], "negative": ["prompt", 1]}
BASE: Graph = {
    "loader": node("LanceLoader", model="demonstration (nano)", weight_dtype="default", vision="auto", vae="auto"),
    "prompt": node("LanceEncode", clip=["loader", 1], target="image", prompt=PROMPT),
    "other_prompt": node("LanceEncode", clip=["loader", 1], target="image", prompt=OTHER_PROMPT),
    "empty": node("EmptyLanceLatent", **SIZE, frames=1),
    "picture": node("LoadImage", image="lance_star.png"),
    "other_picture": node("LoadImage", image="lance_circle_right.png"),
    "latent": node("VAEEncode", pixels=["picture", 0], vae=["loader", 2]),
    "other_latent": node("VAEEncode", pixels=["other_picture", 0], vae=["loader", 2]),
    "sampler": node("KSamplerSelect", sampler_name="euler"),
    "sigmas": node("LanceScheduler", model=["loader", 0], steps=STEPS, denoise=1.0),
    "noise": node("RandomNoise", noise_seed=1),
    "guider": node("CFGGuider", **GUIDED),
}
# What else a node may need, and the graph that gives it.
MORE: Graph = {
    "mask": node("ImageToMask", image=["other_picture", 0], channel="red"),
    "frames": node("RepeatImageBatch", image=["picture", 0], amount=FRAMES),
    "video": node("CreateVideo", images=["frames", 0], fps=12.0),
    "audio": node("EmptyAudio", duration=1.0, sample_rate=44100, channels=2),
    "hooks": node("CreateHookLora", lora_name=LORA, strength_model=1.0, strength_clip=1.0),
    "range": node("ConditioningTimestepsRange", start_percent=0.0, end_percent=0.5),
    "operation": node("LatentOperationTonemapReinhard", multiplier=0.5),
    "patched": node("LoraLoaderModelOnly", model=["loader", 0], lora_name=LORA, strength_model=1.0),
    "half": node("SetLatentNoiseMask", samples=["latent", 0], mask=["mask", 0]),
    "pair": node("LatentBatch", samples1=["latent", 0], samples2=["other_latent", 0]),
    "clip": node("VAEEncode", pixels=["frames", 0], vae=["loader", 2]),
    "empty_clip": node("EmptyLanceLatent", **SIZE, frames=17),
}
GIVEN = {
    "MODEL": [["loader", 0], ["patched", 0]], "CLIP": [["loader", 1]], "VAE": [["loader", 2]],
    "CONDITIONING": [["prompt", 0], ["other_prompt", 0]], "LATENT": [["latent", 0], ["other_latent", 0]],
    "GUIDER": [["guider", 0]], "SIGMAS": [["sigmas", 0]], "SAMPLER": [["sampler", 0]], "NOISE": [["noise", 0]],
    "IMAGE": [["picture", 0], ["other_picture", 0]], "MASK": [["mask", 0]], "VIDEO": [["video", 0]],
    "AUDIO": [["audio", 0]], "HOOKS": [["hooks", 0]], "TIMESTEPS_RANGE": [["range", 0]],
    "LATENT_OPERATION": [["operation", 0]], "LORA_MODEL": [["trained", 0]],
}  # fmt: skip
LATENTS = {
    "LatentBatchSeedBehavior": [["pair", 0]], "LatentFromBatch": [["pair", 0]], "RebatchLatents": [["pair", 0]],
    "TrimVideoLatent": [["clip", 0]], "ReplaceVideoLatentFrames": [["clip", 0], ["other_latent", 0]],
    "NormalizeVideoLatentStart": [["clip", 0]],
}  # fmt: skip
NEGATIVE = ("negative", "uncond", "empty_conditioning")
# Sizes that the demonstration model knows, few steps, and names of layers that it has.
SMALL = {
    "width": SIDE, "height": SIDE, "length": FRAMES, "frames_number": FRAMES, "video_frames": FRAMES, "steps": STEPS,
    "batch_size": 1, "max_length": 4, "tile_size": SIDE, "scale_ratio": 1.0,
}  # fmt: skip
TEXTS = {"layers": "1", "double_layers": "1", "single_layers": ""}
# Widgets of single nodes that a rule would not hit.
PARTICULAR = {
    "ConditioningSetArea": {"x": 32},
    "ConditioningSetAreaPercentage": {"width": 0.5},
    "ConditioningSetAreaPercentageVideo": {"width": 0.5},
    "ContextWindowsManual": {"context_length": 3, "context_overlap": 1, "dim": 2},
    "ExtendIntermediateSigmas": {"end_at_sigma": 0.2},
    "LTXVContextWindows": {"context_length": 9, "context_overlap": 8},
    "TrainLoraNode": {"existing_lora": "[None]"},
    "TrimVideoLatent": {"trim_amount": 1},
    "WanContextWindowsManual": {"context_length": 9, "context_overlap": 4},
}
# What single nodes act on: longer runs, clips, a mask, or one prompt of two.
RUNS = {
    **dict.fromkeys(
        ("ConditioningSetArea", "ConditioningSetAreaPercentage", "ConditioningSetAreaPercentageVideo",
         "ConditioningSetAreaStrength", "ConditioningSetMask"),
        {"combined": True},
    ),
    "SkipLayerGuidanceDiT": {"steps": 12}, "SkipLayerGuidanceSD3": {"steps": 12},
    "ContextWindowsManual": {"frames": 17}, "LTXVContextWindows": {"frames": 17},
    "WanContextWindowsManual": {"frames": 17}, "DifferentialDiffusion": {"masked": True},
    "EasyCache": {"steps": 12}, "LazyCache": {"steps": 12},
}  # fmt: skip
SLOW = ("vae", "image_encoder")  # optional; encoders of pictures for other models enlarge them to a megapixel


class NeedsMore(Exception):
    """The node cannot run without a thing that only another model's files give; the message names its type."""


@dataclass
class Socket:
    """An input that is connected, or a widget with its options."""

    name: str
    type: str
    options: dict
    required: bool


def sockets(groups: dict, prefix: str = "") -> Iterator[Socket]:
    for group in ("required", "optional"):
        for name, spec in groups.get(group, {}).items():
            type, options = spec[0], spec[1] if len(spec) > 1 else {}
            if isinstance(type, (list, tuple)):
                type, options = "COMBO", options | {"options": list(type)}
            elif type.split(",")[0] in WIDGETS:
                type = type.split(",")[0]
            yield Socket(prefix + name, type, options, group == "required")


def interface(name: str) -> list[Socket]:
    return list(sockets(nodes.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()))


def takes_ours(name: str) -> bool:
    return any(set(socket.type.split(",")) & set(OURS) for socket in interface(name))


# ---- Values of widgets -----------------------------------------------------------------------------------------------


def default(socket: Socket):
    options = socket.options
    last = socket.name.rsplit(".", 1)[-1]
    if socket.type == "COMBO":
        choices = options.get("options") or []
        if not choices:
            raise NeedsMore("a file")
        return options.get("default", choices[0])
    if last in SMALL and (socket.type == "INT" or last == "scale_ratio"):
        return max(SMALL[last], options.get("min", 0))
    if socket.type == "STRING":
        return TEXTS.get(last) or options.get("default") or (PROMPT if options.get("multiline") else "")
    return options.get("default", {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}[socket.type])


def other(socket: Socket):
    """Another value: the next choice, the other side, another prompt, or a number a quarter of the way to its limit
    (by a quarter of itself at most)."""
    value, options = default(socket), socket.options
    last = socket.name.rsplit(".", 1)[-1]
    if socket.type == "COMBO":
        choices = options["options"]
        return choices[(choices.index(value) + 1) % len(choices)] if value in choices else choices[0]
    if socket.type == "BOOLEAN":
        return not value
    if socket.type == "STRING":
        return OTHER_PROMPT if value == PROMPT else value
    if last in SMALL:
        return value
    low, high = options.get("min", value), options.get("max", value + 1)
    most = max(abs(value), 1) / 4
    moved = value - min((value - low) / 4, most) if value > low else value + min((high - low) / 4, most)
    if socket.type == "INT":
        by = options.get("step", 1) or 1
        steps = max(1, round(abs(moved - value) / by))
        return value - steps * by if value - steps * by >= low and value > low else min(value + steps * by, high)
    return round(moved, 6)


# ---- The node --------------------------------------------------------------------------------------------------------


class Inputs:
    """The inputs of a node, filled one after the other."""

    def __init__(self, name: str, setting: str):
        self.setting, self.name = setting, name
        self.values: dict = {}
        self.taken: dict[str, int] = {}
        node = nodes.NODE_CLASS_MAPPINGS[name]
        self.samples = "sampling" in node.CATEGORY and "LATENT" in node.RETURN_TYPES
        for socket in interface(name):
            self.add(socket)

    def add(self, socket: Socket) -> None:
        if socket.type == DYNAMIC:
            self.add_choice(socket)
        elif socket.type == GROWING:
            self.add_growing(socket)
        elif socket.type in WIDGETS:
            value = (other if self.setting == "other" else default)(socket)
            self.values[socket.name] = PARTICULAR.get(self.name, {}).get(socket.name, value)
        elif socket.required or self.setting == "connected" and socket.type in GIVEN and socket.name not in SLOW:
            self.values[socket.name] = self.link(socket)

    def add_choice(self, socket: Socket) -> None:
        choices = socket.options["options"]
        choice = choices[-1 if self.setting == "other" else 0]
        self.values[socket.name] = choice["key"]
        for inner in sockets(choice["inputs"], f"{socket.name}."):
            self.add(inner)

    def add_growing(self, socket: Socket) -> None:
        template = socket.options["template"]
        names = template.get("names") or [f"{template['prefix']}{i}" for i in range(template["max"])]
        count = template.get("min", 0) if self.setting != "connected" else max(1, template.get("min", 0))
        (inner,) = sockets(template["input"])
        for name in names[:count]:
            if inner.type in GIVEN or socket.required:
                self.add(Socket(f"{socket.name}.{name}", inner.type, inner.options, inner.required))

    def link(self, socket: Socket) -> list:
        for type in socket.type.split(","):
            if type in GIVEN:
                break
        else:
            raise NeedsMore(socket.type)
        if type == "CONDITIONING" and any(word in socket.name.lower() for word in NEGATIVE):
            return ["prompt", 1]
        if type == "LATENT" and self.samples:
            return ["empty", 0]
        links = LATENTS.get(self.name, GIVEN[type]) if type == "LATENT" else GIVEN[type]
        self.taken[type] = self.taken.get(type, -1) + 1
        return links[self.taken[type] % len(links)]


# ---- What comes out --------------------------------------------------------------------------------------------------


def tail(
    outputs: dict[str, list],
    samples: bool,
    steps: int = STEPS,
    frames: int = 1,
    masked: bool = False,
    combined: bool = False,
) -> Graph:
    """Looks at what a node gives: pictures as they are; the rest sampled and decoded. `outputs`: type → links."""
    first = {type: links[0] for type, links in outputs.items()}
    conditionings = outputs.get("CONDITIONING", [])
    parts = {
        "model": first.get("MODEL", ["loader", 0]),
        "positive": conditionings[0] if conditionings else ["prompt", 0],
        "negative": conditionings[1] if len(conditionings) > 1 else ["prompt", 1],
    }
    vae, graph = first.get("VAE", ["loader", 2]), {}
    if "CLIP" in outputs:
        graph["text"] = node("CLIPTextEncode", clip=first["CLIP"], text=PROMPT)
        parts["positive"] = ["text", 0]
    if combined:
        both = {"conditioning_1": parts["positive"], "conditioning_2": ["other_prompt", 0]}
        graph["both"], parts["positive"] = node("ConditioningCombine", **both), ["both", 0]
    start = "half" if masked else "empty" if frames == 1 else "empty_clip"
    latent = first.get("LATENT", [start, 0])
    if samples:
        sampled = latent
    elif {"GUIDER", "SIGMAS", "SAMPLER", "NOISE"} & outputs.keys():
        guider, sampler, sigmas, noise = (
            first.get(type.upper(), [type, 0]) for type in ("guider", "sampler", "sigmas", "noise")
        )
        custom = {"guider": guider, "sampler": sampler, "sigmas": sigmas, "noise": noise, "latent_image": latent}
        graph["custom"], sampled = node("SamplerCustomAdvanced", **custom), ["custom", 0]
    elif outputs.keys() & {"MODEL", "CLIP", "CONDITIONING", "LATENT"}:
        denoise = 0.7 if masked or "LATENT" in outputs and not conditionings else 1.0
        settings = {"seed": 1, "steps": steps, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple"}
        graph["ksampler"] = node("KSampler", **settings, denoise=denoise, latent_image=latent, **parts)
        sampled = ["ksampler", 0]
    else:
        sampled = ["latent", 0]
    if outputs.keys() & {*OURS, "NOISE"}:
        graph["decoded"] = node("VAEDecode", samples=sampled, vae=vae)
        graph["look"] = node("Look", name="picture", value=["decoded", 0])
    return graph


def around(name: str, setting: str) -> Graph:
    """The node with that setting ("default", "other" or "connected"), and all that it takes to see what it does."""
    inputs, types = Inputs(name, setting), nodes.NODE_CLASS_MAPPINGS[name].RETURN_TYPES
    outputs: dict[str, list] = {}
    for i, type in enumerate(types):
        outputs.setdefault(type, []).append([NODE, i])
    graph = BASE | MORE | {NODE: node(name, **inputs.values)} | tail(outputs, inputs.samples, **RUNS.get(name, {}))
    if ["trained", 0] in inputs.values.values():
        graph["trained"] = node("TrainLoraNode", **Inputs("TrainLoraNode", "default").values)
    for i in range(len(types)):
        graph[f"look_{i}"] = node("Look", name=f"output {i}", value=[NODE, i])
    return graph


def without(graph: Graph, name: str) -> Graph | None:
    """The same graph with the node bypassed: each output is the first input of its type. None if there is none."""
    inputs = graph[NODE]["inputs"]
    types, kinds = nodes.NODE_CLASS_MAPPINGS[name].RETURN_TYPES, {s.name: s.type for s in interface(name)}
    outputs: dict[str, list] = {}
    for type in types:
        links = [value for key, value in inputs.items() if isinstance(value, list) and kinds.get(key) == type]
        if type in (*OURS, "NOISE") and links:
            at = len(outputs.get(type, []))
            outputs.setdefault(type, []).append(links[min(at, len(links) - 1)])
    return BASE | MORE | tail(outputs, False, **RUNS.get(name, {})) if outputs else None
