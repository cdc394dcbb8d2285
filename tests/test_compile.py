"""Core's TorchCompileModel: few graphs, whatever is sampled."""

import comfy.utils
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_torch_compile import TorchCompileModel
from comfyui_lance.lance_model import language, media
from comfyui_lance.lance_model.sequence import Label
from support.sampling import sample, schedule

pytestmark = pytest.mark.slow

STEPS = 8  # the last is below the CFG interval
GRAPHS = 7  # two parts of two experts, of one also for its first length alone, and without queries in the last layer


class Graphs(list):
    """A backend that compiles nothing, keeps the graphs that it is given and counts how often they run."""

    runs = 0

    def __call__(self, graph, inputs, **kwargs):
        self.append(graph)

        def run(*arguments):
            self.runs += 1
            return graph(*arguments)

        return run


@pytest.fixture()
def graphs(monkeypatch) -> Graphs:
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


def edit(clip, vae, prompt: str, height: int):
    picture = torch.rand(1, height, 96, 3, generator=torch.Generator().manual_seed(1))
    source, _ = media.take(picture, media.KEEP, Label.SOURCE, vae)
    return language.encode_pair(clip, prompt, seen=[source]), source.latent


def test_everything_shares_a_few_graphs(lance, graphs):
    model, clip, vae = lance
    compiled, ran = TorchCompileModel.execute(model, graphs).result[0], set()

    def check(what: str, pair, shape, sampled=compiled, **kwargs):
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        before = graphs.runs
        made, plain = (sample(m, *pair, noise, schedule(STEPS, 3.5), **kwargs) for m in (sampled, model))
        assert torch.allclose(made, plain, atol=1e-4), what
        assert len(graphs) <= GRAPHS, what
        ran.add(graphs.runs - before)
        assert len(ran) == 1, f"{what} runs partly uncompiled"

    with torch.inference_mode():  # as ComfyUI runs its nodes
        pair, longer = (
            language.encode_pair(clip, prompt) for prompt in ("A fox.", "A red fox sleeps under a birch tree.")
        )
        one = (1, 48, 1, 4, 6)
        check("text to image", pair, one)
        check("a longer prompt", longer, one)
        check("no CFG", pair, one, cfg=1.0)
        for batch in (2, 3):
            check("a batch", pair, (batch, *one[1:]))
        check("another size", pair, (1, 48, 1, 8, 6))
        check("a clip", pair, (1, 48, 3, 4, 6))
        for prompt, height in (("Make it blue.", 64), ("Make it much more blue.", 64), ("Make it blue.", 96)):
            edits, latent = edit(clip, vae, prompt, height)
            check("an edit", edits, latent.shape)
        mask = torch.zeros(1, 1, *latent.shape[2:])
        mask[..., :3] = 1
        check("a masked edit", edits, latent.shape, latent=latent, mask=mask)
        check("a step cache", pair, one, EasyCacheNode.execute(compiled, 1e-9, 0.0, 1.0, False).result[0])


def test_the_model_is_left_as_it_was(lance, graphs):
    model, clip, _ = lance
    transformer = model.model.diffusion_model
    compiled = TorchCompileModel.execute(model, graphs).result[0]
    sample(compiled, *language.encode_pair(clip, "A fox."), torch.randn(1, 48, 1, 4, 6), schedule(1, 3.5))
    assert graphs and model.model.diffusion_model is transformer
