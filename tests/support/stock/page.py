"""The survey as a page for those who use the nodes."""

from __future__ import annotations

import re

import nodes

from . import verdicts
from .survey import Row

WORKS, STAYS, REFUSED, OTHER = "works", "no effect", "refused", "for other models"
WITH = {"default": "At its defaults: ", "other": "With other settings: ", "connected": "With its optional inputs: "}
QUOTED = 200  # characters of a refusal, in whole sentences

HEAD = """# ComfyUI's own nodes with Lance

Every node of ComfyUI {version} that takes a MODEL, CLIP, VAE, CONDITIONING, LATENT, GUIDER, SIGMAS or SAMPLER was given
Lance's own: at its defaults, with other settings, and with its optional inputs connected. What came out was sampled and
decoded. The demonstration model did it, at 64x64.

| | nodes |
| --- | --- |
{counts}

- **works**: does with Lance what it does with other models.
- **no effect**: runs, and leaves the picture as it is.
- **refused**: says in a sentence why it cannot be, and what to do instead.
- **for other models**: built around another model or its files.

This page is made by `LANCE_REFRESH_NODES=1 bash scripts/test.sh tests/test_stock_nodes.py`, and tested to be true.
"""


def title(name: str) -> str:
    shown = nodes.NODE_DISPLAY_NAME_MAPPINGS.get(name) or name
    return f"{shown} (`{name}`)" if re.sub(r"\W", "", shown) != re.sub(r"\W", "", name) else shown


def quoted(text: str) -> str:
    """As many of its first sentences as fit, one at least."""
    first, *more = re.split(r"(?<=[.!?])\s", text.strip())
    for sentence in more:
        if len(first) + len(sentence) > QUOTED:
            break
        first = f"{first} {sentence}"
    return first


def told(row: Row) -> str:
    """What it refuses, each sentence once."""
    found: dict[str, str] = {}
    always = "works" not in row.kinds()
    for setting, result in row.results.items():
        if result.kind == "says":
            found.setdefault(quoted(result.text), "" if always and not found else WITH[setting])
    return " ".join(f"{when}“{text}”" for text, when in found.items())


def verdict(row: Row) -> tuple[str, str]:
    """(what happens, what to know) of a node."""
    name, kinds = row.name, row.kinds()
    if kinds == {"needs"}:
        return OTHER, f"Needs {verdicts.NEEDS.get(row.first('needs').text, row.first('needs').text)}."
    if "crash" in kinds and name not in verdicts.LIMITED:
        return OTHER, sentence(verdicts.OTHER_MODELS.get(name, "fails"))
    if "works" not in kinds:
        return REFUSED, told(row)
    known = verdicts.UNCHANGED if row.silent else verdicts.LIMITED | verdicts.REMARKS | verdicts.FOREIGN
    remark = known.get(name, "")
    what = OTHER if name in verdicts.FOREIGN else STAYS if row.silent else WORKS
    if row.silent and "says" in kinds:
        what = REFUSED
    return what, " ".join(part for part in (sentence(remark), told(row)) if part)


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def write(rows: list[Row], version: str) -> str:
    groups: dict[str, list[tuple[str, str, str]]] = {}
    counts = dict.fromkeys((WORKS, STAYS, REFUSED, OTHER), 0)
    found = [(row.name, *verdict(row)) for row in rows]
    found += [(name, WORKS, sentence(text)) for name, text in verdicts.UNTRIED.items()]
    for name, what, text in found:
        counts[what] += 1
        group = nodes.NODE_CLASS_MAPPINGS[name].CATEGORY or "without a category"
        groups.setdefault(group, []).append((title(name), what, text))
    table = "\n".join(f"| {what} | {count} |" for what, count in counts.items())
    page = [HEAD.format(version=version, counts=table)]
    for group in sorted(groups):
        page.append(f"\n## {group}\n\n| node | with Lance | |\n| --- | --- | --- |\n")
        lines = sorted(groups[group], key=lambda line: (line[0].lower(), line[0]))
        page += [f"| {node} | {what} | {text.replace('|', '/')} |\n" for node, what, text in lines]
    return "".join(page)
