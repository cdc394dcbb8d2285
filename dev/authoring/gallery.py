"""Draws docs/demonstration.png and the help pages' pictures, all by the demonstration model; for developers.

bash scripts/draw.sh gallery
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...training import world
from ..host import lora
from ..host.workflows import INPUTS, REPOSITORY

WIDTH, SCALE, GAP, LINE = 960, 2, 16, 16
PANEL, PANEL_GAP = 192, 12  # of the help pages' pictures
PAPER, INK, FADED = (252, 251, 248), (40, 42, 48), (110, 112, 118)
IMAGES = REPOSITORY / "web" / "docs" / "images"


def as_picture(pixels) -> Image.Image:
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)


def sheet(groups: list[tuple[str, list[tuple[list, str]]]]) -> Image.Image:
    """Rows of pictures with their words below: (title, [(pictures, words)]), wrapped to the sheet's width."""
    page = Image.new("RGB", (WIDTH, 4000), PAPER)
    draw = ImageDraw.Draw(page)
    title_font, font = ImageFont.load_default(19), ImageFont.load_default(13)
    y = GAP
    for title, items in groups:
        draw.text((GAP, y), title, font=title_font, fill=INK)
        y += 30
        x, bottom = GAP, y
        for pictures, words in items:
            pictures = [as_picture(p).resize((p.shape[1] * SCALE, p.shape[0] * SCALE), 3) for p in pictures]
            width = sum(picture.width + 4 for picture in pictures) - 4
            if x + width > WIDTH - GAP:
                x, y = GAP, bottom + GAP
            for i, picture in enumerate(pictures):
                page.paste(picture, (x + i * (picture.width + 4), y))
            height = pictures[0].height + 4
            draw_words(draw, words, (x, y + height), width, font)
            bottom = max(bottom, y + height + LINE * len(wrapped(draw, words, font, width)))
            x += width + GAP
        y = bottom + GAP
    return page.crop((0, 0, WIDTH, y))


def draw_words(draw: ImageDraw.ImageDraw, words: str, corner: tuple[int, int], width: int, font) -> None:
    for i, line in enumerate(wrapped(draw, words, font, width)):
        draw.text((corner[0], corner[1] + i * round(font.size * 1.25)), line, font=font, fill=FADED)


def wrapped(draw: ImageDraw.ImageDraw, words: str, font, width: int) -> list[str]:
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if draw.textlength(longer, font) <= width else [*lines, word]
    return lines


def row(panels: list) -> Image.Image:
    """Pictures and words side by side, for a help page."""
    picture = Image.new("RGB", (len(panels) * (PANEL + PANEL_GAP) - PANEL_GAP, PANEL), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(19)
    for i, panel in enumerate(panels):
        x = i * (PANEL + PANEL_GAP)
        if isinstance(panel, str):
            height = 24 * len(wrapped(draw, panel, font, PANEL - 16))
            draw_words(draw, panel, (x + 8, (PANEL - height) // 2), PANEL - 16, font)
        else:
            panel = as_picture(panel)
            scale = PANEL / max(panel.size)
            panel = panel.resize((round(panel.width * scale), round(panel.height * scale)), Image.Resampling.BICUBIC)
            picture.paste(panel, (x + (PANEL - panel.width) // 2, (PANEL - panel.height) // 2))
    return picture


class Gallery:
    """The demonstration model, making one thing after another."""

    def __init__(self, folder: Path):
        from ...lance_model import loading, media, nano
        from ...nodes import answer, edit, frames, guidance, paste, rank, reference, resolution, windows
        from ...training import judge

        self.judging, self.media = judge, media
        self.answer, self.edit, self.frames, self.guidance = answer, edit, frames, guidance
        self.paste, self.rank, self.reference = paste, rank, reference
        self.resolution, self.windows = resolution, windows
        self.judge = judge.Judge(*loading.load(nano.checkpoint(folder)))

    def with_lora(self, file: Path, strength: float):
        """The judge with a LoRA on its MODEL."""
        import comfy.sd
        import comfy.utils

        weights = comfy.utils.load_torch_file(str(file))
        model = comfy.sd.load_lora_for_models(self.judge.model, self.judge.clip, weights, strength, 0.0)[0]
        return self.judging.Judge(model, self.judge.clip, self.judge.vae)

    def edited(self, source: world.Scene, instruction: str):
        clip, vae = self.judge.clip, self.judge.vae
        encode = self.edit.LanceEncodeEdit.execute
        encoded = encode(clip, vae, self.judging.image(source), instruction, self.resolution.KEEP).result
        return self.judge.sample(*(out[0] for out in encoded), 7)[0]

    def pasted(self, source: Image.Image, instruction: str) -> Image.Image:
        """The source with its middle edited."""
        image = self.media.to_images([source])
        encode = self.edit.LanceEncodeEdit.execute
        encoded = encode(self.judge.clip, self.judge.vae, image, instruction, self.resolution.DEMONSTRATION).result
        *prompts, latent = (out[0] for out in encoded)
        edited = self.media.to_images([as_picture(self.judge.sample(*prompts, latent, 7)[0])])
        return self.media.to_pictures(self.paste.LancePasteEdit.execute(edited, latent, 2.0).result[0])[0]

    def with_subject(self, reference: world.Scene, prompt: str):
        images = {"image0": self.judging.image(reference)}
        encode = self.reference.LanceEncodeReferences.execute
        encoded = encode(self.judge.clip, self.judge.vae, images, prompt, "image", self.resolution.KEEP).result
        latent = self.judging.EmptyLanceLatent.execute(self.judging.SIZE, 1, 1).result[0]
        return self.judge.sample(*encoded, latent, 7)[0]

    def edited_clip(self, path: Path, instruction: str, model=None):
        """The clip's frames, and the edited ones."""
        from comfy_api.latest import InputImpl

        video = InputImpl.VideoFromFile(str(path))
        encode = self.edit.LanceEncodeVideoEdit.execute
        *encoded, _ = encode(
            self.judge.clip, self.judge.vae, video, instruction, self.resolution.KEEP, 12.0, 6.0
        ).result
        frames = (video.get_components().images * 255).round().byte().numpy()
        judge = self.judge if model is None else self.judging.Judge(model, self.judge.clip, self.judge.vae)
        return frames, judge.sample(*encoded, 7)

    def from_picture(self, first: world.Scene, prompt: str):
        encode, given = self.judging.LanceEncode.execute, self.judging.image(first)
        latent = self.frames.LanceImageToVideo.execute(
            self.judge.vae, self.resolution.KEEP, world.FRAMES, 1, start=given
        ).result[0]
        return self.judge.sample(*encode(self.judge.clip, "video", prompt).result, latent, 7)

    def said(self, node: str, *args, **kwargs) -> str:
        node = getattr(self.answer, node).PREPARE_CLASS_CLONE({"hidden_inputs": {}})
        text = node.execute(self.judge.model, self.judge.clip, *args, **kwargs).result[0]
        return text if isinstance(text, str) else text[0]

    def ranked(self, prompt: str, count: int) -> list:
        """The tries of a prompt at 4 steps, best first."""
        import numpy
        import torch

        judge = self.judging.Judge(self.judge.model, self.judge.clip, self.judge.vae, steps=4)
        tries = torch.from_numpy(numpy.concatenate([judge.made(prompt, seed) for seed in range(count)])).float() / 255
        node = self.rank.LanceRank.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
        task = {"task": "caption", "prompt": prompt, "style": "accurate"}
        found = node.execute(judge.model, judge.clip, tries, task, image_resolution=self.resolution.KEEP).result[0]
        return list((found * 255).round().byte().numpy())


PROMPT = "a small red circle on the left and a small blue star on the right on a pink background"
LOOK = "a cinematic picture of a large yellow star in the middle on a blue background"
CIRCLE = world.Scene((world.Thing("circle", "red", 13, *world.POSITIONS["on the left"], place="on the left"),), "green")
STAR = world.Scene(
    (world.Thing("star", "blue", 13, *world.POSITIONS["in the middle"], place="in the middle"),), "white"
)


def overview(gallery: Gallery) -> Image.Image:
    rng = random.Random(3)
    judge = gallery.judge
    prompts = [
        PROMPT,
        "a large green heart in the middle on a pink background",
        "two small purple squares on a blue background",
        "a small cyan triangle at the top and a small orange cross at the bottom on a black background",
        "a yellow star at the top on a gray background",
        "three small orange hearts on a green background",
    ]
    edits = [make(rng) for make in (*world.EDITS[:3], world.hard.two_steps)]
    singles = [world.single(rng) for _ in range(3)]
    wishes = [
        "in the middle on a pink background",
        "at the top on a green background",
        "on the right on a gray background",
    ]
    hard = [
        "a yellow heart to the right of a blue star on a blue background",
        "a red star above a purple square on a green background",
        "four small red triangles on a blue background",
        "a red circle at the top left, a green star at the top right, a blue heart at the bottom left and an orange "
        "cross at the bottom right on a white background",
        "the word S U N in blue on a green background",
    ]
    moving = (
        "a green heart moves up on a pink background",
        "a blue square grows and a red star moves down on a green background",
    )
    scenes = [world.a_scene(rng) for _ in range(6)]
    return sheet(
        [
            ("Text to picture", [([judge.made(prompt, 5)[0]], prompt) for prompt in prompts]),
            (
                "More at once: relations, counts, places; words it has half learned",
                [([judge.made(prompt, 5)[0]], prompt) for prompt in hard],
            ),
            (
                "Edits: before and after",
                [([pixels(e.source), gallery.edited(e.source, e.instruction)], e.instruction) for e in edits],
            ),
            (
                "Subjects: reference and picture",
                [
                    ([pixels(scene), gallery.with_subject(scene, prompt)], prompt)
                    for scene, prompt in zip(singles, (f"the object from the picture {wish}" for wish in wishes))
                ],
            ),
            ("Text to clip", [(list(judge.made(prompt, 5, world.FRAMES)[:7:2]), prompt) for prompt in moving][:2]),
            ("Captions", [([pixels(scene)], judge.captioned(scene)) for scene in scenes]),
        ]
    )


def wide(*things: tuple[str, str]) -> Image.Image:
    """Shapes (colour, shape) beside one another on green, three times as large as the model knows pictures."""
    side = 3 * world.SIDE
    picture = Image.new("RGB", (side * len(things), side))
    for i, (color, shape) in enumerate(things):
        scene = world.Scene((world.Thing(shape, color, 13, *world.POSITIONS["in the middle"]),), "green")
        picture.paste(world.render(scene).resize((side, side), Image.Resampling.BICUBIC), (i * side, 0))
    return picture


def pixels(scene: world.Scene):
    import numpy

    return numpy.asarray(world.render(scene))


def help_pictures(gallery: Gallery, look: Path) -> dict[str, Callable[[], list]]:
    """Node → the panels of its help page's picture. `look`: the LoRA of `train_look`."""
    judge, judging = gallery.judge, gallery.judging
    made = judge.made(PROMPT, 5)[0]
    model = judge.model

    def with_model(other, **settings):
        changed = judging.Judge(other, judge.clip, judge.vae, **settings)
        return changed.made(PROMPT, 5)[0]

    def guided(**mode):
        return gallery.guidance.LanceGuidance.execute(model, 0.4, 1.0, **mode).result[0]

    pair = world.Scene(
        (
            world.Thing("circle", "blue", 10, *world.POSITIONS["on the left"]),
            world.Thing("square", "orange", 10, *world.POSITIONS["on the right"]),
        ),
        "blue",
    )
    three = wide(("yellow", "star"), ("red", "circle"), ("purple", "heart"))
    question = "Where is the orange square?"
    asked = {"task": "question", "question": question}
    seen = {"images": {"image0": judging.image(pair)}, "image_resolution": gallery.resolution.KEEP}
    source, recolored = gallery.edited_clip(INPUTS / "lance_moving.mp4", "make the circle purple")
    in_windows = gallery.windows.LanceContextWindows.execute(model, {"window": "automatic"}).result[0]
    longer, long = gallery.edited_clip(INPUTS / "lance_to_and_fro.mp4", "make the circle purple", in_windows)
    moved = gallery.from_picture(CIRCLE, "a red circle moves right on a green background")
    clip = judge.made("a green heart moves up on a pink background", 5, world.FRAMES)
    return {
        "LanceLoader": [PROMPT, made],
        "LanceEncode": [PROMPT, made],
        "LanceEncodeEdit": [pixels(CIRCLE), "make the circle blue", gallery.edited(CIRCLE, "make the circle blue")],
        "LancePasteEdit": [three, "make the circle blue", gallery.pasted(three, "make the circle blue")],
        "LanceEncodeVideoEdit": [source[4], "make the circle purple", recolored[4]],
        "LanceContextWindows": [longer[12], "make the circle purple", *long[[2, 12, 22]]],
        "LanceEncodeReferences": [
            pixels(STAR),
            gallery.with_subject(STAR, "the object from the picture at the top on a green background"),
        ],
        "LanceImageToVideo": [pixels(CIRCLE), *moved[[2, 4, 8]]],
        "EmptyLanceLatent": [made, *clip[[0, 4, 8]]],
        "LanceGuidance": [with_model(model, cfg=1.0), made, with_model(guided(renormalisation="none"))],
        "LanceScheduler": [with_model(model, steps=steps) for steps in (2, 5, 30)],
        "LanceAnswer": [
            pixels(pair),
            f"{question} {gallery.said('LanceAnswer', asked, 20, judging.OFF, **seen)}",
        ],
        "LanceLoraLoader": [gallery.with_lora(look, strength).made(LOOK, 5)[0] for strength in (0.0, 0.5, 1.0)],
        "LanceEnhancePrompt": [
            "a red star",
            gallery.said("LanceEnhancePrompt", "a red star", 40, judging.OFF),
        ],
        "LanceRank": [PROMPT, *gallery.ranked(PROMPT, 4)],
    }


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery(Path(folder))
        overview(gallery).save(REPOSITORY / "docs" / "demonstration.png", optimize=True)
        look = lora.train("train_look", Path(folder)).file
        for node, panels in help_pictures(gallery, look).items():
            row(panels).save(IMAGES / f"{node}.jpg", quality=90)


if __name__ == "__main__":
    main()
