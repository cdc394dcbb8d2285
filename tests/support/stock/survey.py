"""Runs every node of the host that takes what Lance gives, at each setting, and sorts what happened."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import torch

import nodes

from . import verdicts
from .graphs import NeedsMore, around, takes_ours, without
from .host import Failure, Graph, Host, Outcome

SETTINGS = ("default", "other", "connected")
SAME = 1e-3  # of a picture's 0 to 1; runs of one graph are up to 2e-5 apart, another picture is 0.02 or more away
SENTENCE = 220  # characters of a refusal that are kept


@dataclass
class Result:
    """Of a node at one setting. `changed`: whether the picture differs from that of the graph without the node; None
    where there is no such picture."""

    kind: str  # works, says, crash, needs
    text: str = ""
    changed: bool | None = None
    failure: Failure | None = None


@dataclass
class Row:
    """A node, and what happened."""

    name: str
    results: dict[str, Result] = field(default_factory=dict)

    def kinds(self) -> set[str]:
        return {result.kind for result in self.results.values()}

    def first(self, kind: str) -> Result | None:
        return next((result for result in self.results.values() if result.kind == kind), None)

    @property
    def silent(self) -> bool:
        """Whether it ran and never changed a picture."""
        changed = [result.changed for result in self.results.values() if result.kind == "works"]
        return bool(changed) and not any(changed) and False in changed

    @property
    def crash(self) -> Failure | None:
        """One that is not known to be of a node for other models."""
        known = verdicts.OTHER_MODELS | verdicts.LIMITED
        crashes = [result.failure for result in self.results.values() if result.kind == "crash"]
        return next((f for f in crashes if f.stumbled or self.name not in known), None)


def names() -> list[str]:
    found = [name for name, node in nodes.NODE_CLASS_MAPPINGS.items() if name != "Look" and not _ours(node)]
    return sorted(name for name in found if name not in verdicts.UNTRIED and takes_ours(name))


def _ours(node) -> bool:
    return (node.CATEGORY or "").split("/")[0] == "Lance"


class Survey:
    """Rows of nodes. Pictures without a node are made once for all nodes that share them."""

    def __init__(self, host: Host):
        self.host = host
        self.plain: dict[str, Outcome] = {}

    def row(self, name: str) -> Row:
        row, graphs = Row(name), []
        for setting in SETTINGS:
            try:
                graph = around(name, setting)
            except NeedsMore as missing:
                row.results[setting] = Result("needs", str(missing))
                continue
            if graph not in graphs:
                graphs.append(graph)
                row.results[setting] = self.result(name, graph)
        return row

    def result(self, name: str, graph: Graph) -> Result:
        outcome = self.host.run(graph)
        if outcome.failure is not None:
            kind = "says" if outcome.failure.raised else "crash"
            return Result(kind, " ".join(outcome.failure.message.split())[:SENTENCE], failure=outcome.failure)
        return Result("works", changed=self.changed(name, graph, outcome))

    def changed(self, name: str, graph: Graph, outcome: Outcome) -> bool | None:
        plain, pictures = without(graph, name), outcome.seen.get("picture")
        if plain is None or pictures is None:
            return None
        key = json.dumps(plain)
        if key not in self.plain:
            self.plain[key] = self.host.run(plain)
        if self.plain[key].failure is not None:
            raise RuntimeError(f"The graph without {name} failed: {self.plain[key].failure}")
        return not same(pictures, self.plain[key].seen["picture"])


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape and (x - y).abs().max() < SAME for x, y in zip(a, b))
