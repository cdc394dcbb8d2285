"""Questions, captions and rewritten prompts, in core's Generate Text and in Lance's own nodes."""

import gc
import weakref

import comfy.model_management
import pytest
import torch
from comfy.text_encoders.llama import BaseGenerate
from comfy_extras.nodes_textgen import TextGenerate
from comfyui_lance.lance_model import choosing, decoding, generation, language, media, tasks
from comfyui_lance.lance_model.resolution import PRESETS
from comfyui_lance.lance_model.sequence import IM_END, TEXT_VOCABULARY, Label
from comfyui_lance.lance_model.transformer import LanceTransformer
from comfyui_lance.nodes.answer import LanceEnhancePrompt
from support.answers import OFF, ask, node
from support.pictures import clip_of, picture
from support.sampling import lora_patches

ON = {"sampling": "on", "temperature": 1.0, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.05, "seed": 7}


def enhance(lance, prompt: str, **kwargs) -> str:
    return node(LanceEnhancePrompt).execute(lance[0], lance[1], prompt, 6, OFF, **kwargs).result[0]


def request(question: str = "What is it?", **kwargs) -> language.Request:
    return language.Request(question, media=(media.preprocess(picture(), PRESETS["image 256"]),), **kwargs)


def test_core_generate_text_is_the_same_answer(lance):
    image = picture()
    core = TextGenerate.execute(lance[1], "What is it?", 6, {"sampling_mode": "off"}, image=image).result[0]
    assert core.strip() == ask(lance, images={"image0": image}, image_resolution="image 768")[0]
    assert core


def test_core_generate_text_takes_clips_samples_and_refuses_sound(lance):
    mode = {
        "sampling_mode": "on",
        "temperature": 0.7,
        "top_k": 64,
        "top_p": 0.95,
        "min_p": 0.05,
        "repetition_penalty": 1.05,
        "seed": 1,
    }
    run = [
        TextGenerate.execute(lance[1], "What moves?", 6, {**mode, "seed": s}, video=picture(n=26)).result[0]
        for s in (1, 1, 2)
    ]
    assert run[0] == run[1] != run[2]
    with pytest.raises(ValueError, match="cannot hear"):
        TextGenerate.execute(lance[1], "What sounds?", 6, mode, audio={"waveform": torch.zeros(1, 1, 10)})


def test_nothing_to_answer_is_said(lance):
    with pytest.raises(ValueError, match="nothing to answer"):
        TextGenerate.execute(lance[1], " ", 6, {"sampling_mode": "off"}, use_default_template=False)
    assert TextGenerate.execute(lance[1], "", 6, {"sampling_mode": "off"}).result[0]


def test_the_sequence_of_a_question(lance):
    sequence = language.prepare(lance[1], request()).question(request())
    assert [s.label for s in sequence.segments] == [Label.TEMPLATE, Label.VISION, Label.PROMPT, Label.TEMPLATE]
    text = lance[1].decode(sequence.segments[0].ids, skip_special_tokens=False)
    assert text == f"<|im_start|>system\n{tasks.QUESTION['image']}<|im_end|>\n<|im_start|>user\n"
    plain = language.prepare(lance[1], request()).question(language.Request("Hello"))
    assert tasks.ASSISTANT in lance[1].decode(plain.segments[0].ids)


def test_batches_give_what_single_runs_give(lance):
    images = picture(n=3)
    batch = ask(lance, images={"image0": images})
    assert batch == [ask(lance, images={"image0": image[None]})[0] for image in images]
    assert len(set(batch)) > 1


def test_several_pictures_and_clips(lance):
    two = ask(lance, images={"image0": picture(seed=1), "image1": picture(seed=2)})
    assert len(two) == 1 and two != ask(lance, images={"image0": picture(seed=2), "image1": picture(seed=1)})
    assert ask(lance, video=clip_of(13), video_resolution="video 192p") != ask(
        lance, video=clip_of(1), video_resolution="video 192p"
    )


@pytest.mark.parametrize("style", tasks.CAPTION)
def test_captions(style, lance):
    assert ask(lance, task={"task": "caption", "style": style}, images={"image0": picture()})[0]


def test_a_caption_needs_something_to_look_at(lance):
    with pytest.raises(ValueError, match="nothing to caption"):
        ask(lance, task={"task": "caption", "style": "accurate"})


def test_sampling_depends_on_the_seed_alone(lance):
    images = {"image0": picture()}
    first, again, other = (ask(lance, sampling={**ON, "seed": s}, images=images) for s in (7, 7, 8))
    assert first == again != other


def test_positions_of_training_are_an_option(lance):
    images = {"image0": picture()}
    assert ask(lance, images=images, max_length=24) != ask(lance, images=images, max_length=24, positions="trained")


def test_a_lora_on_the_model_counts(lance):
    model, clip, vae = lance
    patched = model.clone()
    patched.add_patches(lora_patches(1.0), 1.0)
    plain = language.answer(clip, model, request(), max_length=8)
    assert language.answer(clip, patched, request(), max_length=8) != plain
    assert language.answer(clip, model, request(), max_length=8) == plain


def test_one_pass_a_token(lance, monkeypatch):
    lengths = []

    def count(reader):
        original = reader.read

        def counting(self, und, *args):
            lengths.append(und.shape[1])
            return original(self, und, *args)

        monkeypatch.setattr(reader, "read", counting)

    count(LanceTransformer)
    count(decoding.Held)
    ids = language.answer(lance[1], lance[0], request(), max_length=8)
    assert len(ids) == 8 and lengths[0] > 50 and lengths[1:] == [1] * 7


def _with_logits(lance, monkeypatch, change):
    head = lance[1].cond_stage_model.lm_head
    original = head.forward
    monkeypatch.setattr(head, "forward", lambda x: change(original(x)))


def test_ids_that_are_no_tokens_are_never_emitted(lance, monkeypatch):
    def tempt(logits):
        logits[:, TEXT_VOCABULARY:] = 1e4
        return logits

    _with_logits(lance, monkeypatch, tempt)
    assert max(language.answer(lance[1], lance[0], request(), max_length=4)) < TEXT_VOCABULARY


@pytest.mark.parametrize("look_every", [1, 3])
def test_an_answer_stops_at_its_end(look_every, lance, monkeypatch):
    calls = []

    def end_at_third(logits):
        calls.append(1)
        if len(calls) == 3:
            logits[:, IM_END] = 1e4
        return logits

    _with_logits(lance, monkeypatch, end_at_third)
    monkeypatch.setattr(generation, "LOOK_EVERY", look_every)
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    assert len(language.answer(lance[1], lance[0], request(), max_length=9)) == 2
    assert len(calls) == 3


def test_an_empty_answer_is_an_empty_string(lance, monkeypatch):
    def end(logits):
        logits[:, IM_END] = 1e4
        return logits

    _with_logits(lance, monkeypatch, end)
    assert ask(lance, images={"image0": picture()}) == [""]
    assert enhance(lance, "a fox") == "a fox"


def test_prompts_are_rewritten_with_or_without_a_picture(lance):
    plain = enhance(lance, "a fox")
    seen = enhance(lance, "a fox", image=picture())
    assert plain and seen and plain != seen


def test_text_arrives_while_it_is_written_and_an_interrupt_frees_the_cache(lance, monkeypatch):
    seen, caches, original = [], [], LanceTransformer.cache

    def remember(self, *args):
        cache = original(self, *args)
        caches.append(weakref.ref(cache[0]))
        return cache

    def on_tokens(ids):
        seen.append(len(ids))
        if len(ids) == 3:
            raise comfy.model_management.InterruptProcessingException()

    monkeypatch.setattr(LanceTransformer, "cache", remember)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        language.answer(lance[1], lance[0], request(), max_length=8, on_tokens=on_tokens)
    gc.collect()
    assert seen == [1, 2, 3] and caches[0]() is None


@pytest.mark.parametrize("held", [(), (0, 2), (1,)], ids=str)
def test_an_answer_is_the_same_however_many_layers_are_held_ready(lance, monkeypatch, held):
    model, clip, _ = lance
    expected = language.answer(clip, model, request(), max_length=8)
    layers = model.model.diffusion_model.layers
    stay = [module for i in held for module in layers[i].modules()]
    monkeypatch.setattr(decoding, "_can_stay", lambda module, device: module in stay)
    assert len(layers) == 3 and len(expected) == 8
    assert language.answer(clip, model, request(), max_length=8) == expected


def test_silu_and_product_in_one_kernel():
    gate, up = torch.linspace(-90, 90, 1001), torch.linspace(-3, 2, 1001)
    made = decoding.swiglu(torch.cat([torch.zeros(1001), -gate, -up]))
    torch.testing.assert_close(made, torch.nn.functional.silu(gate) * up, rtol=1e-5, atol=1e-5)


def test_weights_are_held_once(lance):
    clip = lance[1]
    own = {p.data_ptr() for p in clip.cond_stage_model.parameters()}
    assert not own & {p.data_ptr() for p in lance[0].model.parameters()}
    assert not any(
        "layers" in name for name, _ in clip.cond_stage_model.named_parameters() if not name.startswith("visual.")
    )
    assert clip.cond_stage_model.transformer_patcher.model is lance[0].model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 20, "top_p": 0.9},
        {"top_p": 0.7, "repetition_penalty": 1.3},
        {"min_p": 0.02, "presence_penalty": 0.5, "repetition_penalty": 0.9},
        {"temperature": 0.0, "repetition_penalty": 2.0},
        {"do_sample": False, "repetition_penalty": 2.0},
    ],
    ids=str,
)
def test_tokens_are_chosen_as_by_the_host(options):
    plain = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    options = plain | {"repetition_penalty": 1.0, "presence_penalty": 0.0, "do_sample": True} | options
    logits = 4 * torch.randn(1, 300, generator=torch.Generator().manual_seed(1))
    said = [5, 17, int(logits.argmax()), 5]
    ours, hosts = (torch.Generator().manual_seed(2) for _ in range(2))
    for _ in range(20):
        token = choosing.choose(logits.clone(), torch.tensor(said), ours, **options)
        expected = BaseGenerate().sample_token(logits.clone(), token_history=said, generator=hosts, **options)
        assert token == expected[0, 0]
