"""The shipped workflows as they are, where Lance's files are: a tiny checkpoint, laid out as the official one."""

from __future__ import annotations

import pytest
from comfyui_lance.dev.demo import describe
from comfyui_lance.dev.host import workflows
from comfyui_lance.dev.host.watching import watch

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "side"),
    [("text_to_image", 768), ("image_edit", 64), ("caption", None)],  # an edit goes back over the source, of 64x64
)
def test_a_workflow_takes_lance_and_its_sizes(lance_server, name, side):
    prompt = workflows.load(name)
    for sampler in workflows.of_type(prompt, "KSampler"):
        sampler["steps"] = 1
    run = watch(lance_server.url, prompt)
    assert run.end == "execution_success", run.error
    assert f"Load Lance: {workflows.IMAGE_MODEL}" in lance_server.log.read_text()
    (made,) = lance_server.outputs({"outputs": run.outputs})
    assert side is None or describe(made) == f"{side}x{side}"
