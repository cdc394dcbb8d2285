"""The plan of a graph, which `build_graph.js` builds in the page: columns of boxes, and the nodes in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NOTE_COLUMNS = 46  # letters that fit into a line of a note


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
    size: tuple[int, int] = (0, 0)  # width and height at least
    properties: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)  # of widgets, in place of their names

    def __getitem__(self, output: str) -> Link:
        return Link(self.id, output)


@dataclass
class Box:
    """Nodes in stacks side by side."""

    title: str | None
    stacks: list[list[Node]]


class Graph:
    """
    g = Graph()
    g.note("what the artist reads first")
    g.box("Title of a box around the nodes that follow")
    loader = g.add("LanceLoader", "Title", model="demonstration (nano)")    # widgets by name
    g.column("Title of a box in the next column")
    g.add("VAEDecode", samples=samples, vae=loader["VAE"])                  # links by the outputs' names
    """

    def __init__(self) -> None:
        self.columns: list[list[Box]] = []  # from left to right
        self.nodes: list[Node] = []

    def column(self, title: str | None = None) -> None:
        """Begin a column with a box; without a title, its nodes stand free."""
        self.columns.append([])
        self.box(title)

    def box(self, title: str | None) -> None:
        """Begin a box below those of the current column."""
        self.columns[-1].append(Box(title, [[]]))

    def beside(self) -> None:
        """The nodes that follow stand beside the others of their box."""
        self.columns[-1][-1].stacks.append([])

    def add(self, type: str, title: str | None = None, /, **inputs: Any) -> Node:
        """A node at the end of the current box. `inputs`: widget values, and links to earlier nodes' outputs."""
        node = Node(type, title, inputs, len(self.nodes) + 1)
        self.nodes.append(node)
        self.columns[-1][-1].stacks[-1].append(node)
        return node

    def note(self, text: str, title: str = "Read me") -> None:
        """A note in Markdown on top of a new column."""
        self.column()
        node = self.add("MarkdownNote", title, text=text)
        node.size = (0, 24 + sum(18 * (1 + len(line) // NOTE_COLUMNS) for line in text.splitlines()))
