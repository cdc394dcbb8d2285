"""The house stays as docs/architecture.md draws it: floors, and rooms that fit a screen."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from comfyui_lance import REPOSITORY

FILE, FUNCTION = 400, 60  # lines
FOLDERS = ("nodes", "lance_model", "clients", "scripts", "training", "dev", "benchmarks", "tests")
SCHEMA = "define_schema"  # a node's description is data


def trees(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    """Modules of its own package that a module imports."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return {name for node in found for name in ([node.module] if node.module else [a.name for a in node.names])}


def floors() -> dict[str, int]:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (.+) \|$", page, re.MULTILINE)
    return {room: int(floor) for floor, rooms in rows for room in re.findall(r"`(\w+)`", rooms)}


def test_imports_go_down():
    floor = floors()
    rooms = {path.stem: imported(tree) for path, tree in trees("lance_model") if path.stem != "__init__"}
    assert floor.keys() == rooms.keys()
    upwards = {(room, other) for room, others in rooms.items() for other in others if floor[other] >= floor[room]}
    assert not upwards


def test_the_model_knows_no_node():
    for path, tree in trees("lance_model"):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2, path
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = getattr(node, "module", None) or ""
            assert not {"nodes", "folder_paths"} & {name.split(".")[0] for name in [module, *names]}, path


def test_rooms_fit_a_screen():
    found = []
    for path, tree in trees(*FOLDERS):
        lines = path.read_text(encoding="utf-8").count("\n")
        found += [(path.name, lines)] if lines > FILE else []
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != SCHEMA:
                lines = node.end_lineno - node.lineno + 1
                found += [(path.name, node.name, lines)] if lines > FUNCTION else []
    assert not found
