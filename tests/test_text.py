"""Long sentences in the code break where a reader would pause."""

import io
import subprocess
import tokenize
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAUSES = (".", ",", ":", ";", "!", "?", ")", "\\n")
ROOM = 112  # a line that the next word would not have fitted into may end anywhere


def broken(source: str) -> list[tuple[int, str]]:
    """Lines on which a string ends within a phrase though there was room, or holds a line break that is not its end."""
    skipped = (tokenize.NL, tokenize.COMMENT)
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in skipped]
    found = []
    for one, next_one in zip(tokens, tokens[1:]):
        if one.type != tokenize.STRING or next_one.type != tokenize.STRING or one.end[0] == next_one.start[0]:
            continue
        text, following = one.string.rstrip("\"'"), next_one.string.lstrip("rbfRBF\"'")
        fits = len(one.line.rstrip()) + len(following.split(" ")[0]) < ROOM
        if fits and not text.rstrip().endswith(PAUSES):
            found.append((one.end[0], text))
    return found


def files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=REPOSITORY, capture_output=True, text=True)
    return listed.stdout.split() or [str(path.relative_to(REPOSITORY)) for path in REPOSITORY.rglob("*.py")]


@pytest.mark.parametrize(
    "part", ["nodes", "lance_model", "dev", "training", "scripts", "clients", "benchmarks", "tests"]
)
def test_no_string_ends_within_a_phrase(part):
    found = {name: broken((REPOSITORY / name).read_text()) for name in files() if name.startswith(part)}
    assert found and not any(found.values()), {name: lines for name, lines in found.items() if lines}


def test_the_check_finds_what_it_is_for():
    assert broken('x = (\n    "The clip lasts as "\n    "long as the source."\n)\n') == [(2, '"The clip lasts as ')]
    assert not broken('x = (\n    "The clip, which is short, "\n    "lasts as long as the source."\n)\n')
