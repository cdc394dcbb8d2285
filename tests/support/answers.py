"""Lance's answer node outside of a prompt."""

from comfyui_lance.nodes.answer import LanceAnswer

OFF = {"sampling": "off"}
QUESTION = {"task": "question", "question": "What is it?"}


def node(cls):
    """The node as ComfyUI's executor prepares it, outside of a prompt."""
    return cls.PREPARE_CLASS_CLONE({"hidden_inputs": {}})


def ask(lance, task=QUESTION, sampling=OFF, max_length=6, **kwargs) -> list[str]:
    return node(LanceAnswer).execute(lance[0], lance[1], task, max_length, sampling, **kwargs).result[0]
