"""What workflows hold on to: the nodes as `/object_info` tells of them, flat."""

from __future__ import annotations

from collections.abc import Iterator

# Their options are the files that are there.
FILE_LISTS = {("LanceLoader", "model"), ("LanceLoader", "vision"), ("LanceLoader", "vae")}
FILE_LISTS |= {("LanceLoraLoader", "lora_name")}


def lance_nodes(object_info: dict) -> dict[str, dict]:
    return {name: node for name, node in object_info.items() if node["category"].split("/")[0] == "Lance"}


def inputs(groups: dict, prefix: str = "") -> Iterator[tuple[str, dict]]:
    """(name, settings) of every input in its order; what a choice brings along follows it as `choice.name`."""
    for group in ("required", "optional"):
        for name, (type, settings) in groups.get(group, {}).items():
            choices = settings["options"] if type == "COMFY_DYNAMICCOMBO_V3" else []
            keys = {"options": [choice["key"] for choice in choices]} if choices else {}
            yield prefix + name, {"type": type, "required": group == "required"} | settings | keys
            for choice in choices:
                yield from inputs(choice["inputs"], f"{prefix}{name}.")


def interface(name: str, node: dict) -> dict:
    """A node without its texts and without lists of files."""
    left_out = {
        key: {"tooltip", "options"} if (name, key) in FILE_LISTS else {"tooltip"} for key, _ in inputs(node["input"])
    }
    return {
        "display_name": node["display_name"],
        "category": node["category"],
        "inputs": {
            key: {setting: value for setting, value in settings.items() if setting not in left_out[key]}
            for key, settings in inputs(node["input"])
        },
        "outputs": [
            {"name": output, "type": type, "list": is_list}
            for output, type, is_list in zip(node["output_name"], node["output"], node["output_is_list"], strict=True)
        ],
    }
