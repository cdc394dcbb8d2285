"""The plan of a graph: columns of nodes from left to right, which `build_graph.js` builds in the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NOTE_COLUMNS = 58  # letters that fit into a line of a note


@dataclass(frozen=True)
class Link:
    node: int
    output: str


@dataclass
class Node:
    type: str
    title: str | None
    inputs: dict[str, Any]
    id: int
    height: int = 0  # at least

    def __getitem__(self, output: str) -> Link:
        return Link(self.id, output)


@dataclass
class Column:
    title: str | None
    nodes: list[Node] = field(default_factory=list)


class Graph:
    """
    g = Graph()
    g.note("what the artist reads first")
    g.column("Title of a box around the nodes that follow")
    loader = g.add("LanceLoader", "Title", model="demonstration (nano)")    # widgets by name
    g.add("VAEDecode", samples=samples, vae=loader["VAE"])                  # links by the outputs' names
    """

    def __init__(self) -> None:
        self.columns: list[Column] = []
        self._nodes = 0

    def column(self, title: str | None = None) -> None:
        """Begin a column; with a title, in a box of that title."""
        self.columns.append(Column(title))

    def add(self, type: str, title: str | None = None, /, **inputs: Any) -> Node:
        """A node at the end of the current column. `inputs`: widget values, and links to earlier nodes' outputs."""
        self._nodes += 1
        node = Node(type, title, inputs, self._nodes)
        self.columns[-1].nodes.append(node)
        return node

    def note(self, text: str, title: str = "Read me") -> Node:
        """A column of its own with a note in Markdown."""
        self.column()
        node = self.add("MarkdownNote", title, text=text)
        node.height = 40 + sum(14 + 18 * (len(line) // NOTE_COLUMNS) for line in text.splitlines())
        return node
