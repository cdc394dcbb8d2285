"""Questions and captions: pictures or a clip → text, by the understanding expert."""

from __future__ import annotations

import torch
from comfy_api.latest import Input, io

from ..lance_model import clips, language, media, tasks
from .choice import chosen
from .progress import shown
from .resolution import AUTOMATIC, chosen_resolution, resolution_input, seen_inputs

EMPTY_HINT = "Lance ended its answer at once. Turn sampling on, ask in other words, or switch positions to trained."
POSITIONS = ("reference", "trained")
TASKS = ("question", "caption")
SAMPLING = ("off", "on")


def task_input() -> io.Input:
    return io.DynamicCombo.Input(
        "task",
        options=[
            io.DynamicCombo.Option(
                TASKS[0],
                [io.String.Input("question", multiline=True, dynamic_prompts=True, tooltip="What you want to know.")],
            ),
            io.DynamicCombo.Option(
                TASKS[1],
                [
                    io.Combo.Input(
                        "style",
                        options=list(tasks.CAPTION),
                        tooltip="Which of the trained instructions to caption by.",
                    )
                ],
            ),
        ],
        tooltip="Ask something, or have everything described.",
    )


def sampling_input() -> io.Input:
    return io.DynamicCombo.Input(
        "sampling",
        options=[
            io.DynamicCombo.Option(SAMPLING[0], []),
            io.DynamicCombo.Option(
                SAMPLING[1],
                [
                    io.Float.Input(
                        "temperature", default=0.7, min=0.01, max=2.0, step=0.01, tooltip="Higher is more varied."
                    ),
                    io.Int.Input(
                        "top_k", default=50, min=0, max=1000, tooltip="Choose among this many tokens; 0 is all."
                    ),
                    io.Float.Input(
                        "top_p",
                        default=0.9,
                        min=0.01,
                        max=1.0,
                        step=0.01,
                        tooltip="Choose among the likeliest tokens of this total.",
                    ),
                    io.Float.Input(
                        "repetition_penalty", default=1.05, min=0.5, max=2.0, step=0.01, tooltip="Above 1 repeats less."
                    ),
                    io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
                ],
            ),
        ],
        tooltip="off: the likeliest token each time, the same answer every run.",
    )


def sampling_options(sampling: dict | None) -> dict:
    sampling = chosen("sampling", sampling, SAMPLING)
    return {key: value for key, value in sampling.items() if key != "sampling"} | {
        "do_sample": sampling["sampling"] == "on"
    }


def length_input() -> io.Input:
    return io.Int.Input(
        "max_length", default=256, min=1, max=4096, tooltip="Tokens at most; a token is about three quarters of a word."
    )


def respond(clip, model, request: language.Request, max_length: int, sampling: dict | None, node_id: str | None) -> str:
    """The answer, which is shown on the node while it is written."""
    show = shown(node_id)
    options = {"max_length": max_length} | sampling_options(sampling)
    if show is not None:
        options["on_tokens"] = lambda ids: show(clip.decode(ids))
    ids = language.answer(clip, model, request, **options)
    text = clip.decode(ids).strip()
    if not text and show is not None:
        show(EMPTY_HINT)
    return text


class LanceAnswer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LanceAnswer",
            display_name="Lance Ask or Caption",
            category="Lance",
            description="Answers a question about pictures or a clip, or captions them. A batch of pictures gives a "
            "list of texts, one for each.",
            search_aliases=["caption", "vqa", "image to text", "describe", "interrogate", "video question", "llm"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Load Lance; LoRAs on it count."),
                io.Clip.Input("clip", tooltip="The CLIP of Load Lance."),
                task_input(),
                io.Autogrow.Input(
                    "images",
                    template=io.Autogrow.TemplatePrefix(io.Image.Input("image"), prefix="image", min=0, max=16),
                    optional=True,
                    tooltip="Pictures. Those of several sockets are shown together, in one question.",
                ),
                io.Video.Input(
                    "video", optional=True, tooltip="A clip; up to 6 seconds are seen at 12 frames a second."
                ),
                length_input(),
                sampling_input(),
                *seen_inputs(),
                io.Combo.Input(
                    "positions",
                    options=list(POSITIONS),
                    optional=True,
                    advanced=True,
                    tooltip="reference: plain positions, as the reference implementation answers. "
                    "trained: with MaPE's shift, as in training; try it if answers stop at once.",
                ),
                io.String.Input(
                    "system_prompt",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="In place of the system prompt that Lance was trained with for this task. Empty: that one.",
                ),
            ],
            outputs=[io.String.Output(display_name="text", is_output_list=True)],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        task: dict | None = None,
        max_length: int = 256,
        sampling: dict | None = None,
        images: io.Autogrow.Type | None = None,
        video: Input.Video | None = None,
        image_resolution: str = AUTOMATIC,
        video_resolution: str = AUTOMATIC,
        positions: str = POSITIONS[0],
        system_prompt: str = "",
    ) -> io.NodeOutput:
        task = chosen("task", task, TASKS)
        batches = [media.some(batch, name) for name, batch in (images or {}).items()]
        given = []
        if video is not None:
            rule = chosen_resolution(video_resolution, "video", clip)
            given.append(media.preprocess(clips.sampled(video)[0], rule))
        modality = "video" if given else "image"
        system, prompt = system_prompt.strip() or None, task.get("question", "")
        if task["task"] == "caption":
            system, prompt = system or tasks.CAPTION[task["style"]].format(m=modality), ""
            if not batches and not given:
                raise ValueError("There is nothing to caption. Connect a picture or a clip.")
        texts, rule = [], chosen_resolution(image_resolution, "image", clip)
        for i in range(max((len(batch) for batch in batches), default=1)):
            pictures = [batch[min(i, len(batch) - 1)][None] for batch in batches]
            seen = [media.preprocess(picture, rule) for picture in pictures]
            request = language.Request(prompt, system, modality, (*seen, *given), mape=positions == "trained")
            texts.append(respond(clip, model, request, max_length, sampling, cls.hidden.unique_id))
        return io.NodeOutput(texts)


class LanceEnhancePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LanceEnhancePrompt",
            display_name="Lance Enhance Prompt",
            category="Lance",
            description="Rewrites a short idea as the long, concrete description that Lance was trained on, "
            "optionally with the clip's first frame before its eyes.",
            search_aliases=["prompt enhance", "rewrite", "expand prompt", "llm", "magic prompt"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Load Lance; LoRAs on it count."),
                io.Clip.Input("clip", tooltip="The CLIP of Load Lance."),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip="The short idea."),
                io.Image.Input("image", optional=True, tooltip="The clip's first frame, for image to video."),
                length_input(),
                sampling_input(),
                resolution_input(
                    "image",
                    name="image_resolution",
                    tooltip="How large the picture is for the vision encoder.",
                    optional=True,
                    advanced=True,
                ),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    default=tasks.REWRITE,
                    optional=True,
                    advanced=True,
                    tooltip="The system prompt by which the idea is rewritten.",
                ),
            ],
            outputs=[io.String.Output(display_name="prompt")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        prompt: str,
        max_length: int = 256,
        sampling: dict | None = None,
        image: torch.Tensor | None = None,
        image_resolution: str = AUTOMATIC,
        instruction: str = tasks.REWRITE,
    ) -> io.NodeOutput:
        seen = []
        if image is not None:
            rule = chosen_resolution(image_resolution, "image", clip)
            seen.append(media.preprocess(media.some(image, "image")[:1], rule))
        request = language.Request(prompt, instruction, media=tuple(seen))
        text = respond(clip, model, request, max_length, sampling, cls.hidden.unique_id)
        return io.NodeOutput(text or prompt)


NODES = [LanceAnswer, LanceEnhancePrompt]
