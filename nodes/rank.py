"""Pictures or clips of a batch, ranked by what Lance itself sees in them."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..lance_model import language, media, tasks
from .choice import chosen
from .progress import shown
from .resolution import AUTOMATIC, chosen_resolution, seen_inputs

TASKS = ("caption", "question")


def task_input() -> io.Input:
    return io.DynamicCombo.Input(
        "task",
        options=[
            io.DynamicCombo.Option(
                TASKS[0],
                [
                    io.String.Input(
                        "prompt",
                        multiline=True,
                        dynamic_prompts=True,
                        tooltip="What is to be seen: the prompt, or for edits a description of the result.",
                    ),
                    io.Combo.Input(
                        "style",
                        options=list(tasks.CAPTION),
                        tooltip="By which of the trained instructions the prompt would be the caption.",
                    ),
                ],
            ),
            io.DynamicCombo.Option(
                TASKS[1],
                [
                    io.String.Input(
                        "question", multiline=True, dynamic_prompts=True, tooltip="Whose answer tells good from bad."
                    ),
                    io.String.Input("answer", default="Yes", tooltip="The right answer."),
                    io.String.Input(
                        "other_answer",
                        default="No",
                        tooltip="The wrong answer that the right one is weighed against. Empty: any other.",
                    ),
                ],
            ),
        ],
        tooltip="caption: how likely the prompt is as their caption. question: how likely an answer is.",
    )


def check(task: dict) -> None:
    """Raises ValueError for a text that is missing."""
    if task["task"] == "caption" and not task["prompt"].strip():
        raise ValueError("There is no prompt to rank by. Write into prompt what is to be seen.")
    if task["task"] == "question" and not (task["question"].strip() and task["answer"].strip()):
        raise ValueError("There is no question or no answer to rank by. Write both, such as: Is the sky blue? Yes")


def sentence(text: str) -> str:
    """A prompt as captions are written that Lance was trained on: with a capital and a full stop."""
    text = text.strip()
    return text[0].upper() + text[1:] + ("." if text[-1].isascii() and text[-1].isalnum() else "")


def score(clip, model, task: dict, medium: media.Medium, modality: str) -> float:
    """In 0..1. Of a caption the geometric mean of its tokens' probabilities, of an answer its probability, or its share
    of both answers'."""
    if task["task"] == "caption":
        request = language.Request("", tasks.CAPTION[task["style"]].format(m=modality), modality, (medium,))
        (caption,) = language.log_likelihoods(clip, model, request, [sentence(task["prompt"])])
        return float(caption.double().mean().exp())
    answers = [answer for answer in (task["answer"].strip(), task["other_answer"].strip()) if answer]
    request = language.Request(task["question"], None, modality, (medium,))
    found = torch.stack([tokens.double().sum() for tokens in language.log_likelihoods(clip, model, request, answers)])
    return float(found.softmax(dim=0)[0] if len(found) > 1 else found[0].exp())


class LanceRank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LanceRank",
            display_name="Lance Rank",
            category="Lance",
            description="Ranks the pictures or clips of a batch by how well Lance itself finds the prompt in them, "
            "best first. Each is looked at once, which takes less time than a sampling step.",
            search_aliases=["best of n", "pick best", "choose", "score", "rerank", "vqascore", "clip score", "sort"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Load Lance; LoRAs on it count."),
                io.Clip.Input("clip", tooltip="The CLIP of Load Lance."),
                io.Image.Input("images", tooltip="Pictures as one batch, or the frames of clips one after another."),
                task_input(),
                io.Int.Input(
                    "frames",
                    default=1,
                    min=1,
                    max=1 + 4 * 256,
                    tooltip="How many belong together: 1 for pictures, for clips as many as each has.",
                ),
                *seen_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="ranked", tooltip="All of them, best first."),
                io.Image.Output(display_name="best", tooltip="The best picture, or the best clip's frames."),
                io.Float.Output(display_name="scores", is_output_list=True, tooltip="From 0 to 1, best first."),
                io.Int.Output(display_name="index", tooltip="The best one's place, for Get Latent From Batch."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        images: torch.Tensor,
        task: dict | None = None,
        frames: int = 1,
        image_resolution: str = AUTOMATIC,
        video_resolution: str = AUTOMATIC,
    ) -> io.NodeOutput:
        check(task := chosen("task", task, TASKS))
        if len(media.some(images, "images")) > frames and len(images) % frames:
            raise ValueError(
                f"{len(images)} frames are not clips of {frames} each. Set frames as in the node that made the latent, "
                "or to 1 for pictures."
            )
        modality, choice = ("video", video_resolution) if frames > 1 else ("image", image_resolution)
        resolution = chosen_resolution(choice, modality, clip)
        candidates, scores = images.split(frames), []
        progress = comfy.utils.ProgressBar(len(candidates))
        for candidate in candidates:
            comfy.model_management.throw_exception_if_processing_interrupted()
            medium = media.preprocess(media.sample_frames(candidate, media.FPS), resolution)
            scores.append(score(clip, model, task, medium, modality))
            progress.update(1)
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        if show := shown(cls.hidden.unique_id):
            what = "clip" if frames > 1 else "picture"
            show(f"Best first: {what} " + ", ".join(f"{i} ({scores[i]:.3f})" for i in order))
        ranked = torch.cat([candidates[i] for i in order])
        return io.NodeOutput(ranked, candidates[order[0]], [scores[i] for i in order], order[0])


NODES = [LanceRank]
