"""Saved workflows go on working: the nodes' interface changes knowingly, with a line in the changelog."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.interface import interface, lance_nodes

REPOSITORY = Path(__file__).resolve().parent.parent
SNAPSHOT = REPOSITORY / "tests" / "object_info.json"
REFRESH = "LANCE_REFRESH_INTERFACE"
CURE = (
    "Workflows that people have saved may depend on it. Name each of these nodes in the top section of CHANGELOG.md, "
    f"then refresh the snapshot: {REFRESH}=1 bash scripts/test.sh tests/test_interface.py"
)


def leaves(value, path: str = "") -> Iterator[tuple[str, object]]:
    """(path, value) of all that is neither a dict nor a list of dicts."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(i): item for i, item in enumerate(value)}
    if not isinstance(value, dict):
        yield path, value
        return
    for key, item in value.items():
        yield from leaves(item, f"{path} {key}".strip())


def changes(old: dict, new: dict) -> dict[str, str]:
    """Node → what differs, for each node that does. A widget's place counts: workflows save their values in order."""
    found = {}
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            found[name] = f"{name} is {'new' if name in new else 'gone'}"
            continue
        before, after = dict(leaves(old[name])), dict(leaves(new[name]))
        differences = [
            f"{path} was {before.get(path, 'not there')}, is {after.get(path, 'gone')}"
            for path in dict.fromkeys((*before, *after))
            if before.get(path, ...) != after.get(path, ...)
        ]
        if not differences and list(old[name]["inputs"]) != list(new[name]["inputs"]):
            differences = [f"the order of its inputs is {', '.join(new[name]['inputs'])}"]
        if differences:
            found[name] = f"{name}: {'; '.join(differences)}"
    return found


def unnamed(found: dict[str, str], old: dict, new: dict, changelog: str) -> list[str]:
    """Of the changed nodes those that the changelog's top section calls neither by id nor by title."""
    top = changelog.split("\n## ")[1]
    titles = {name: {name} | {nodes[name]["display_name"] for nodes in (old, new) if name in nodes} for name in found}
    return [name for name in found if not any(title in top for title in titles[name])]


def test_the_interface_is_the_recorded_one(server):
    old = json.loads(SNAPSHOT.read_text())
    new = {name: interface(name, node) for name, node in sorted(lance_nodes(server.object_info()).items())}
    found = changes(old, new)
    forgotten = unnamed(found, old, new, (REPOSITORY / "CHANGELOG.md").read_text())
    if os.environ.get(REFRESH) and not forgotten:
        SNAPSHOT.write_text(json.dumps(new, indent=1) + "\n")
    elif found:
        missing = f" The changelog does not name {', '.join(forgotten)}." if forgotten else ""
        pytest.fail(f"The nodes' interface has changed. {'. '.join(found.values())}.{missing} {CURE}", pytrace=False)


@pytest.fixture()
def recorded() -> tuple[dict, dict]:
    return json.loads(SNAPSHOT.read_text()), json.loads(SNAPSHOT.read_text())


def test_a_changed_default_is_told(recorded):
    old, new = recorded
    new["EmptyLanceLatent"]["inputs"]["frames"]["default"] = 9
    assert changes(old, new) == {"EmptyLanceLatent": "EmptyLanceLatent: inputs frames default was 1, is 9"}


def test_a_moved_widget_and_nodes_that_come_and_go_are_told(recorded):
    old, new = recorded
    new["LanceGuidance"]["inputs"] = dict(reversed(new["LanceGuidance"]["inputs"].items()))
    new["LanceNew"] = new.pop("LanceScheduler")
    found = changes(old, new)
    assert found.keys() == {"LanceGuidance", "LanceNew", "LanceScheduler"}
    assert "order" in found["LanceGuidance"] and "new" in found["LanceNew"] and "gone" in found["LanceScheduler"]


def test_only_the_changelogs_top_section_counts(recorded):
    old, new = recorded
    new["EmptyLanceLatent"]["inputs"]["frames"]["default"] = 9
    del new["LanceScheduler"]
    changelog = "# Changelog\n\n## 0.3.0\n\n- Empty Lance Latent: nine frames.\n\n## 0.2.0\n\n- LanceScheduler.\n"
    assert unnamed(changes(old, new), old, new, changelog) == ["LanceScheduler"]
