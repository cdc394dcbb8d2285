"""The shipped workflows, each a function that puts nodes into columns. `workflows.py` draws and saves them.

    def name_of_the_file(g: Graph) -> None:
        g.note("what the artist reads first")
        g.column("Title of a box around the nodes that follow")
        loader = g.add("LanceLoader", "Title", model=IMAGE_MODEL)    # widgets by name
        g.add("VAEDecode", samples=samples, vae=loader["VAE"])       # links by the outputs' names

A function that is listed in WORKFLOWS is a workflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..host.workflows import DEMONSTRATION, IMAGE_MODEL, VIDEO_MODEL

REPOSITORY = "https://huggingface.co/bytedance-research/Lance"
MODEL = "demonstration (nano)"  # comes with the plugin, so every workflow runs as it is

SIZES_ON_DISK = {IMAGE_MODEL: "12.4 GB", VIDEO_MODEL: "14.2 GB"}
# In api/input.
CIRCLE, CIRCLE_RIGHT, STAR, PAIR, MASK, MOVING = (
    "lance_circle.png",
    "lance_circle_right.png",
    "lance_star.png",
    "lance_pair.png",
    "lance_mask.png",
    "lance_moving.mp4",
)
PICTURE_SIZE = DEMONSTRATION
FRAMES = 9

SEED = 42
NOTE_COLUMNS = 58  # letters that fit into a line of a note


@dataclass(frozen=True)
class Link:
    node: int
    output: str


@dataclass
class Node:
    type: str
    title: str | None
    inputs: dict[str, Any]
    id: int
    height: int = 0  # at least

    def __getitem__(self, output: str) -> Link:
        return Link(self.id, output)


@dataclass
class Column:
    title: str | None
    nodes: list[Node] = field(default_factory=list)


class Graph:
    """What `save_workflows.py` builds in the page: columns of nodes from left to right."""

    def __init__(self) -> None:
        self.columns: list[Column] = []
        self._nodes = 0

    def column(self, title: str | None = None) -> None:
        """Begin a column; with a title, in a box of that title."""
        self.columns.append(Column(title))

    def add(self, type: str, title: str | None = None, /, **inputs: Any) -> Node:
        """A node at the end of the current column. `inputs`: widget values, and links to earlier nodes' outputs."""
        self._nodes += 1
        node = Node(type, title, inputs, self._nodes)
        self.columns[-1].nodes.append(node)
        return node

    def note(self, text: str, title: str = "Read me") -> Node:
        """A column of its own with a note in Markdown."""
        self.column()
        node = self.add("MarkdownNote", title, text=text)
        node.height = 40 + sum(14 + 18 * (len(line) // NOTE_COLUMNS) for line in text.splitlines())
        return node


def files_note(model: str, sizes: str) -> str:
    """That a demonstration model is at work, and how to use Lance itself."""
    folder, file = model.split("/")
    return f"""### The model
This runs as it is, on the **demonstration model** that comes with the nodes. It is a thousand times smaller than
Lance and knows nothing but coloured shapes at 64 x 64 pixels.

For Lance itself, get from [bytedance-research/Lance]({REPOSITORY}), in the same folders, into **models/lance**:

- **{folder}** / {file} ({SIZES_ON_DISK[model]})
- **Qwen2.5-VL-ViT** / vit.safetensors and config.json (1.3 GB)
- Wan2.2_VAE.pth (2.8 GB), or ComfyUI's own wan2.2_vae.safetensors in **models/vae**

Press **R** and choose **{model}** in *Load Lance*{sizes}.
"""


# What else to choose for Lance itself.
PICTURE, CLIP = ", *image 768x768* as the size", ", *video 480p 848x480* as the size and 49 frames"
EDITED, EDITED_CLIP = ", *image 768* as the resolution", ", *video 480p* as the resolution"
GIVEN_CLIP = ", *video 480p* as the resolution and 49 frames"
SEEN, SEEN_CLIP = (
    ", *image 768* as the picture's resolution (advanced)",
    ", *video 480p* as the clip's resolution (advanced)",
)


def sample(g: Graph, model: Link, positive: Link, negative: Link, latent: Link) -> Link:
    """KSampler with the model's defaults."""
    sampler = g.add(
        "KSampler",
        model=model,
        positive=positive,
        negative=negative,
        latent_image=latent,
        seed=SEED,
        control_after_generate="fixed",
        steps=30,
        cfg=4.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
    return sampler["LATENT"]


def generation_note(title: str, text: tuple[str, str], sizes: str, model: str = IMAGE_MODEL) -> str:
    """A note of the usual shape: what happens, what to change, which model."""
    return f"## {title}\n{text[0]}\n\n### What to change\n{text[1]}\n\n{files_note(model, sizes)}"


def load(g: Graph) -> Node:
    return g.add("LanceLoader", model=MODEL)


def text_to_image(g: Graph) -> None:
    g.note(
        generation_note(
            "Text to image",
            (
                "Lance draws one picture from a description.",
                "- **Prompt**: the demonstration model knows phrases like this one. Lance wants sentences: what is "
                "there, its colours, materials, light and place.\n"
                "- **Size**: the sizes in the list are those that Lance knows; *custom* takes any multiple of 16.\n"
                "- **Seed**: another number, another picture. Set *randomize* for a new one each run.\n"
                "- **Steps** 30, **CFG** 4: the model's own defaults. *euler* with *simple* comes closest to Lance's "
                "own way of sampling.",
            ),
            PICTURE,
        )
    )
    g.column("1 · Model and size")
    lance = load(g)
    latent = g.add("EmptyLanceLatent", "Picture Size", size=PICTURE_SIZE)
    g.column("2 · Prompt")
    prompt = g.add(
        "LanceEncode",
        clip=lance["CLIP"],
        prompt="a small red circle on the left and a small blue star on the right on a pink background",
        target="image",
    )
    g.column("3 · Sampling")
    samples = sample(g, lance["MODEL"], prompt["positive"], prompt["negative"], latent["LATENT"])
    g.column("4 · Picture")
    image = g.add("VAEDecode", samples=samples, vae=lance["VAE"])
    g.add("SaveImage", images=image["IMAGE"], filename_prefix="lance/text_to_image")


def text_to_video(g: Graph) -> None:
    g.note(
        generation_note(
            "Text to video",
            (
                "Lance makes a clip of 12 frames a second from a description. There is no sound.",
                "- **Prompt**: say what is there, how it moves and, to Lance, what the camera does.\n"
                "- **Frames**: always 1 + 4k. Lance was trained up to 121, ten seconds.\n"
                "- **Size**: take *video 360p* for a quick look. 121 frames at 480p cost four times as much as 49.\n"
                "- **Target** must stay *video*: it chooses the instruction that Lance was trained with.",
            ),
            CLIP,
            VIDEO_MODEL,
        )
    )
    g.column("1 · Model and size")
    lance = load(g)
    latent = g.add("EmptyLanceLatent", "Clip Size and Length", size=PICTURE_SIZE, frames=FRAMES)
    g.column("2 · Prompt")
    prompt = g.add(
        "LanceEncode", clip=lance["CLIP"], prompt="a green heart moves up on a pink background", target="video"
    )
    g.column("3 · Sampling")
    samples = sample(g, lance["MODEL"], prompt["positive"], prompt["negative"], latent["LATENT"])
    g.column("4 · Clip")
    save_clip(g, lance, samples, "text_to_video")


def save_picture(g: Graph, lance: Node, samples: Link, name: str) -> Link:
    image = g.add("VAEDecode", samples=samples, vae=lance["VAE"])
    g.add("SaveImage", images=image["IMAGE"], filename_prefix=f"lance/{name}")
    return image["IMAGE"]


def save_clip(g: Graph, lance: Node, samples: Link, name: str, **clip: Any) -> None:
    frames = g.add("VAEDecode", samples=samples, vae=lance["VAE"])
    video = g.add("CreateVideo", images=frames["IMAGE"], **{"fps": 12.0, **clip})
    g.add("SaveVideo", video=video["VIDEO"], filename_prefix=f"lance/{name}")


def image_edit(g: Graph) -> None:
    g.note(
        generation_note(
            "Image edit",
            (
                "Lance changes a picture as you tell it and keeps the rest.",
                "- **Picture**: your own.\n"
                "- **Prompt**: an instruction: what to change, remove, add or turn into what.\n"
                "- **Resolution**: *demonstration 64x64* suits the demonstration model alone.",
            ),
            EDITED,
        )
    )
    g.column("1 · Model and picture")
    lance = load(g)
    picture = g.add("LoadImage", image=CIRCLE)
    g.column("2 · Instruction")
    edit = g.add(
        "LanceEncodeEdit",
        clip=lance["CLIP"],
        vae=lance["VAE"],
        image=picture["IMAGE"],
        prompt="make the circle blue",
        resolution=DEMONSTRATION,
    )
    g.column("3 · Sampling")
    samples = sample(g, lance["MODEL"], edit["positive"], edit["negative"], edit["latent"])
    g.column("4 · Picture")
    save_picture(g, lance, samples, "image_edit")


def masked_edit(g: Graph) -> None:
    g.note(
        generation_note(
            "Masked edit",
            (
                "Lance changes only what a mask uncovers; everything else stays exactly as it is. Soft edges blend.",
                "- **Mask**: a picture of the same size, white where it may change. "
                "Or paint one: right-click *Load Image*, *Open in MaskEditor*, and connect its MASK.\n"
                "- **Prompt**: what to change.",
            ),
            EDITED,
        )
    )
    g.column("1 · Model, picture, mask")
    lance = load(g)
    picture = g.add("LoadImage", image=PAIR)
    mask = g.add("LoadImageMask", image=MASK, channel="red")
    g.column("2 · Instruction")
    edit = g.add(
        "LanceEncodeEdit",
        clip=lance["CLIP"],
        vae=lance["VAE"],
        image=picture["IMAGE"],
        mask=mask["MASK"],
        prompt="make the square green",
        resolution=DEMONSTRATION,
    )
    g.column("3 · Sampling")
    samples = sample(g, lance["MODEL"], edit["positive"], edit["negative"], edit["latent"])
    g.column("4 · Picture")
    save_picture(g, lance, samples, "masked_edit")


def multi_turn_edit(g: Graph) -> None:
    g.note(
        generation_note(
            "Multi-turn edit",
            (
                "Each turn edits the result of the one before, and shows it.",
                "- **Prompts**: one instruction a turn.\n"
                "- More turns: copy a column and connect it to the last picture.",
            ),
            EDITED,
        )
    )
    g.column("Model and picture")
    lance = load(g)
    image = g.add("LoadImage", image=CIRCLE)["IMAGE"]
    instructions = (
        "make the circle purple",
        "move the circle to the right",
        "change the background to blue",
    )
    for turn, instruction in enumerate(instructions, 1):
        g.column(f"Turn {turn}")
        edit = g.add(
            "LanceEncodeEdit",
            f"Turn {turn}",
            clip=lance["CLIP"],
            vae=lance["VAE"],
            image=image,
            prompt=instruction,
            resolution=DEMONSTRATION,
        )
        samples = sample(g, lance["MODEL"], edit["positive"], edit["negative"], edit["latent"])
        decoded = g.add("VAEDecode", samples=samples, vae=lance["VAE"])
        image = decoded["IMAGE"]
        if turn < len(instructions):
            g.add("PreviewImage", f"After turn {turn}", images=image)
    g.column("Result")
    g.add("SaveImage", images=image, filename_prefix="lance/multi_turn_edit")


def video_edit(g: Graph) -> None:
    g.note(
        generation_note(
            "Video edit",
            (
                "Lance changes a clip as you tell it. It sees up to six seconds at 12 frames a second; "
                "the result lasts as long as the source and keeps its sound.",
                "- **Clip**: your own.\n- **Prompt**: an instruction.\n- **Resolution**: *video 360p* is much quicker.",
            ),
            EDITED_CLIP,
            VIDEO_MODEL,
        )
    )
    g.column("1 · Model and clip")
    lance = load(g)
    video = g.add("LoadVideo", file=MOVING)
    parts = g.add("GetVideoComponents", "Sound of the Source", video=video["VIDEO"])
    g.column("2 · Instruction")
    edit = g.add(
        "LanceEncodeVideoEdit",
        clip=lance["CLIP"],
        vae=lance["VAE"],
        video=video["VIDEO"],
        prompt="make the circle purple",
        resolution=DEMONSTRATION,
    )
    g.column("3 · Sampling")
    samples = sample(g, lance["MODEL"], edit["positive"], edit["negative"], edit["latent"])
    g.column("4 · Clip")
    save_clip(g, lance, samples, "video_edit", fps=edit["fps"], audio=parts["audio"])


def image_to_video(g: Graph) -> None:
    g.note(
        generation_note(
            "Image to video",
            (
                "A picture becomes the first frame of a clip.",
                "- **Start**: your own picture. Connect the last frames of a clip instead, and it is continued.\n"
                "- **Prompt**: what happens. Say what is seen, what moves and how, and what the camera does.\n"
                "- **Frames**: 49 is four seconds; always 1 + 4k, 121 at most.",
            ),
            GIVEN_CLIP,
            VIDEO_MODEL,
        )
    )
    g.column("1 · Model and picture")
    lance = load(g)
    picture = g.add("LoadImage", image=CIRCLE)
    g.column("2 · Prompt and frames")
    prompt = g.add(
        "LanceEncode",
        clip=lance["CLIP"],
        target="video",
        prompt="a red circle moves right on a green background",
    )
    latent = g.add(
        "LanceImageToVideo", vae=lance["VAE"], start=picture["IMAGE"], resolution=DEMONSTRATION, frames=FRAMES
    )
    g.column("3 · Sampling")
    samples = sample(g, lance["MODEL"], prompt["positive"], prompt["negative"], latent["LATENT"])
    g.column("4 · Clip")
    save_clip(g, lance, samples, "image_to_video")


def first_last_frame(g: Graph) -> None:
    g.note(
        generation_note(
            "First and last frame",
            (
                "Lance makes what lies between two pictures. It was not trained for a given last frame: "
                "the closer the two are, the better. The last picture is held for the clip's last four frames.",
                "- **Start** and **end**: your own pictures. The end is cut to the size of the start.\n"
                "- **Prompt**: what happens between.",
            ),
            GIVEN_CLIP,
            VIDEO_MODEL,
        )
    )
    g.column("1 · Model and pictures")
    lance = load(g)
    start = g.add("LoadImage", "First Frame", image=CIRCLE)
    end = g.add("LoadImage", "Last Frame", image=CIRCLE_RIGHT)
    g.column("2 · Prompt and frames")
    prompt = g.add(
        "LanceEncode",
        clip=lance["CLIP"],
        target="video",
        prompt="a red circle moves right on a green background",
    )
    latent = g.add(
        "LanceImageToVideo",
        vae=lance["VAE"],
        start=start["IMAGE"],
        end=end["IMAGE"],
        resolution=DEMONSTRATION,
        frames=FRAMES,
    )
    g.column("3 · Sampling")
    samples = sample(g, lance["MODEL"], prompt["positive"], prompt["negative"], latent["LATENT"])
    g.column("4 · Clip")
    save_clip(g, lance, samples, "first_last_frame")


def subject_image(g: Graph) -> None:
    g.note(
        generation_note(
            "Subject to image",
            (
                "What is in a reference picture appears in a new one.",
                "- **Reference**: your own picture; connect more and sockets grow.\n"
                "- **Prompt**: the new scene. Call the subject by what it is: *the teapot from the picture*.",
            ),
            PICTURE,
        )
    )
    g.column("1 · Model, reference, size")
    lance = load(g)
    reference = g.add("LoadImage", image=STAR)
    latent = g.add("EmptyLanceLatent", "Picture Size", size=PICTURE_SIZE)
    g.column("2 · Prompt")
    prompt = g.add(
        "LanceEncodeReferences",
        clip=lance["CLIP"],
        vae=lance["VAE"],
        **{"images.image0": reference["IMAGE"]},
        prompt="the object from the picture at the top on a green background",
        target="image",
        resolution=DEMONSTRATION,
    )
    g.column("3 · Sampling")
    samples = sample(g, lance["MODEL"], prompt["positive"], prompt["negative"], latent["LATENT"])
    g.column("4 · Picture")
    save_picture(g, lance, samples, "subject_image")


def subject_video(g: Graph) -> None:
    g.note(
        generation_note(
            "Subject to video",
            (
                "What is in a reference picture appears in a clip.",
                "- **Reference**: your own picture; connect more and sockets grow. Speak of them as *the first "
                "picture* and so on.\n"
                "- **Prompt**: the scene and what happens in it.\n"
                "- For the maze and other puzzles of the paper, give a *system prompt* of your own (advanced).",
            ),
            CLIP,
            VIDEO_MODEL,
        )
    )
    g.column("1 · Model, reference, size")
    lance = load(g)
    reference = g.add("LoadImage", image=STAR)
    latent = g.add("EmptyLanceLatent", "Clip Size and Length", size=PICTURE_SIZE, frames=FRAMES)
    g.column("2 · Prompt")
    prompt = g.add(
        "LanceEncodeReferences",
        clip=lance["CLIP"],
        vae=lance["VAE"],
        **{"images.image0": reference["IMAGE"]},
        prompt="the object from the picture moves right on a pink background",
        target="video",
        resolution=DEMONSTRATION,
    )
    g.column("3 · Sampling")
    samples = sample(g, lance["MODEL"], prompt["positive"], prompt["negative"], latent["LATENT"])
    g.column("4 · Clip")
    save_clip(g, lance, samples, "subject_video")


def image_question(g: Graph) -> None:
    g.note(
        generation_note(
            "Ask about a picture",
            (
                "Lance looks at a picture and answers.",
                "- **Question**: anything. Connect more pictures and ask about all of them.\n"
                "- **Sampling** *on* if an answer stops at once or repeats itself.",
            ),
            SEEN,
        )
    )
    g.column("1 · Model and picture")
    lance = load(g)
    picture = g.add("LoadImage", image=PAIR)
    g.column("2 · Question")
    answer = g.add(
        "LanceAnswer",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        task="question",
        image_resolution=DEMONSTRATION,
        **{
            "task.question": "Where is the orange square?",
            "images.image0": picture["IMAGE"],
        },
    )
    g.column("3 · Answer")
    g.add("PreviewAny", "Answer", source=answer["text"])


def video_question(g: Graph) -> None:
    g.note(
        generation_note(
            "Ask about a clip",
            (
                "Lance watches up to six seconds of a clip and answers.",
                "- **Question**: what happens, in which order, in which direction.",
            ),
            SEEN_CLIP,
            VIDEO_MODEL,
        )
    )
    g.column("1 · Model and clip")
    lance = load(g)
    video = g.add("LoadVideo", file=MOVING)
    g.column("2 · Question")
    answer = g.add(
        "LanceAnswer",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        task="question",
        video_resolution=DEMONSTRATION,
        video=video["VIDEO"],
        **{"task.question": "What does the circle do?"},
    )
    g.column("3 · Answer")
    g.add("PreviewAny", "Answer", source=answer["text"])


def caption(g: Graph) -> None:
    g.note(
        generation_note(
            "Caption",
            (
                "Lance describes a picture, for a dataset or as a prompt.",
                "- **Style**: the instructions for captions that Lance was trained with.\n"
                "- A clip can be connected in place of the picture.",
            ),
            SEEN,
        )
    )
    g.column("1 · Model and picture")
    lance = load(g)
    picture = g.add("LoadImage", image=PAIR)
    g.column("2 · Caption")
    text = g.add(
        "LanceAnswer",
        "Lance Caption",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        task="caption",
        image_resolution=DEMONSTRATION,
        **{"task.style": "accurate", "images.image0": picture["IMAGE"]},
    )
    g.column("3 · Text")
    g.add("PreviewAny", "Caption", source=text["text"])


def caption_dataset(g: Graph) -> None:
    g.note(
        generation_note(
            "Caption a folder",
            (
                "Every picture of a folder gets a caption. Pictures, numbered anew, and text files of the same names "
                "are written side by side; to keep names, see *clients* in the plugin's folder.",
                "- **Folder**: a folder in ComfyUI's *input*.\n"
                "- **Folder name**: where the pairs go, in ComfyUI's *output*.",
            ),
            SEEN,
        )
    )
    g.column("1 · Model and folder")
    lance = load(g)
    pictures = g.add("LoadImageDataSetFromFolder", folder="lance_dataset")
    g.column("2 · Captions")
    text = g.add(
        "LanceAnswer",
        "Lance Caption",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        task="caption",
        image_resolution=DEMONSTRATION,
        **{"task.style": "key features", "images.image0": pictures["images"]},
    )
    g.column("3 · Pairs")
    g.add("SaveImageTextDataSetToFolder", images=pictures["images"], texts=text["text"], folder_name="lance_dataset")
    g.add("PreviewAny", "Captions", source=text["text"])


def enhanced_text_to_video(g: Graph) -> None:
    g.note(
        generation_note(
            "Enhanced text to video",
            (
                "Lance first writes your short idea out as the long description that it was trained on, then makes "
                "the clip.",
                "- **Prompt**: a short idea.\n"
                "- **Sampling** and **seed** of the rewriting: another number, another description.",
            ),
            CLIP,
            VIDEO_MODEL,
        )
    )
    g.column("1 · Model and size")
    lance = load(g)
    latent = g.add("EmptyLanceLatent", "Clip Size and Length", size=PICTURE_SIZE, frames=FRAMES)
    g.column("2 · Idea")
    text = g.add("LanceEnhancePrompt", model=lance["MODEL"], clip=lance["CLIP"], prompt="a red star", sampling="on")
    g.add("PreviewAny", "What Lance Wrote", source=text["prompt"])
    g.column("3 · Prompt")
    prompt = g.add("LanceEncode", clip=lance["CLIP"], prompt=text["prompt"], target="video")
    g.column("4 · Sampling")
    samples = sample(g, lance["MODEL"], prompt["positive"], prompt["negative"], latent["LATENT"])
    g.column("5 · Clip")
    save_clip(g, lance, samples, "enhanced_text_to_video")


def caption_to_video(g: Graph) -> None:
    g.note(
        generation_note(
            "Picture, caption, clip",
            (
                "Lance describes a picture, writes the description out as a prompt for a clip, "
                "and makes the clip from the picture.",
                "- **Picture**: your own.\n- **Instruction** (advanced): how the description is turned into a prompt.",
            ),
            GIVEN_CLIP,
            VIDEO_MODEL,
        )
    )
    g.column("1 · Model and picture")
    lance = load(g)
    picture = g.add("LoadImage", image=CIRCLE)
    g.column("2 · Caption")
    text = g.add(
        "LanceAnswer",
        "Lance Caption",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        task="caption",
        image_resolution=DEMONSTRATION,
        **{"task.style": "accurate", "images.image0": picture["IMAGE"]},
    )
    g.add("PreviewAny", "Caption", source=text["text"])
    g.column("3 · Prompt")
    written = g.add(
        "LanceEnhancePrompt",
        model=lance["MODEL"],
        clip=lance["CLIP"],
        prompt=text["text"],
        image=picture["IMAGE"],
        image_resolution=DEMONSTRATION,
        sampling="on",
    )
    g.add("PreviewAny", "What Lance Wrote", source=written["prompt"])
    g.column("4 · Conditioning and frames")
    prompt = g.add("LanceEncode", clip=lance["CLIP"], prompt=written["prompt"], target="video")
    latent = g.add(
        "LanceImageToVideo", vae=lance["VAE"], start=picture["IMAGE"], resolution=DEMONSTRATION, frames=FRAMES
    )
    g.column("5 · Sampling")
    samples = sample(g, lance["MODEL"], prompt["positive"], prompt["negative"], latent["LATENT"])
    g.column("6 · Clip")
    save_clip(g, lance, samples, "caption_to_video")


WORKFLOWS = (
    text_to_image,
    text_to_video,
    image_edit,
    masked_edit,
    multi_turn_edit,
    video_edit,
    image_to_video,
    first_last_frame,
    subject_image,
    subject_video,
    image_question,
    video_question,
    caption,
    caption_dataset,
    enhanced_text_to_video,
    caption_to_video,
)
