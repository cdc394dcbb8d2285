"""Spellings that prompts bring along from other models. Lance reads them as the words they are."""

from __future__ import annotations

import re
import textwrap

SPELLINGS = re.compile(
    r"""
    \([^()]+:\d*\.\d+\)                   # a weight
    | \bembedding:[\w.-]+
    | <(?:lora|lyco|hypernet):[^<>]+>
    | \{[^{}]*\|[^{}]*\}                  # words to choose among, which the page does and a script does not
    | (?:^|(?<=[,.;\n]))[ ]*BREAK\b
    """,
    re.VERBOSE,
)


def noted(*prompts: str) -> str | None:
    """A sentence about those in the prompts; None if there are none."""
    found = [spelling.strip() for prompt in prompts for spelling in SPELLINGS.findall(prompt)]
    if not found:
        return None
    named = ", ".join(textwrap.shorten(spelling, 60, placeholder=" …") for spelling in dict.fromkeys(found))
    return f"Read as plain words: {named}. For a LoRA there is Load Lance LoRA."
