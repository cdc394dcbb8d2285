"""What the registry's package holds, as comfy-cli packs it by .comfyignore: all that a user needs, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
IN = {"__init__.py", "api", "clients", "docs", "lance_model", "locales", "nodes", "web", "workflows"}
IN |= {"subgraphs", "CHANGELOG.md", "LICENSE", "README.md", "README_zh.md", "pyproject.toml"}
SCRIPTS = {"scripts/convert.py", "scripts/download.py"}
pytestmark = pytest.mark.skipif(find_spec("comfy_cli") is None, reason="needs `pip install comfy-cli`")


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HOME": str(cwd)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The repository's files as they are now."""
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a clone of the repository")
    names = run("git", "ls-files", "-co", "--exclude-standard", cwd=REPOSITORY).splitlines()
    return {name for name in names if (REPOSITORY / name).is_file()}


@pytest.fixture(scope="module")
def package(tracked, tmp_path_factory) -> Path:
    """The package, unpacked."""
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("package")
    for name in tracked:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, clone / name)
    run("git", "init", "-q", cwd=clone)
    run("git", "add", "-A", cwd=clone)
    run(sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", "pack", cwd=clone)
    with zipfile.ZipFile(clone / "node.zip") as packed:
        packed.extractall(out)
    return out


def test_the_package_leaves_out_what_serves_development(package, tracked):
    packed = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert packed == {name for name in tracked if name in SCRIPTS or name.split("/")[0] in IN}


@pytest.mark.slow
def test_the_package_is_the_plugin(package, tmp_path):
    """It brings its nodes without a file of the repository's, and its scripts run."""
    program = f"""
import asyncio, importlib.util, sys, torch
from comfy.cli_args import args
args.cpu = not torch.cuda.is_available()
root = {str(package)!r}
spec = importlib.util.spec_from_file_location("plugin", root + "/__init__.py", submodule_search_locations=[root])
plugin = sys.modules["plugin"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)
found = asyncio.run(asyncio.run(plugin.comfy_entrypoint()).get_node_list())
sys.stdout.write(f"{{len(found)}} nodes\\n")
"""
    (tmp_path / "program.py").write_text(program)
    nodes = json.loads((REPOSITORY / "tests" / "object_info.json").read_text(encoding="utf-8"))
    assert run(sys.executable, tmp_path / "program.py", cwd=tmp_path).splitlines()[-1] == f"{len(nodes)} nodes"
    for script in SCRIPTS:
        assert f"usage: {Path(script).name}" in run(sys.executable, package / script, "--help", cwd=tmp_path)


def test_the_readme_shows_nothing_that_the_package_lacks(package):
    text = (package / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) >= 2 and all((package / unquote(picture)).is_file() for picture in pictures)
    scripts = set(re.findall(r"python (?:custom_nodes/comfyui-lance/)?((?:scripts|clients)/\w+\.py)", text))
    assert len(scripts) == 4 and all((package / script).is_file() for script in scripts)
