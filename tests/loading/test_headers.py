"""Hostile headers of safetensors files are refused or harmless."""

import json
import random
import struct
from pathlib import Path

import pytest
from comfyui_lance.lance_model import loading
from comfyui_lance.lance_model.checkpoint import CheckpointError
from support.checkpoints import (
    MODEL,
    VAE,
    VISION,
    check_weights,
    raw_safetensors,
    refusal,
    resident,
)


def tensor(dtype="F32", shape=(4, 4), offsets=(0, 64)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS = {
    "offsets beyond the file": {"a": tensor(shape=(4, 400), offsets=(0, 6400))},
    "negative offsets": {"a": tensor(offsets=(-64, 0))},
    "offsets the wrong way round": {"a": tensor(offsets=(64, 0))},
    "overlapping": {"a": tensor(), "b": tensor()},
    "gap": {"a": tensor(shape=(2, 2), offsets=(0, 16)), "b": tensor(shape=(2, 2), offsets=(48, 64))},
    "shape against offsets": {"a": tensor(shape=(4, 5))},
    "negative shape": {"a": tensor(shape=(-4, -4))},
    "overflowing shape": {"a": tensor(shape=(2**40, 2**40))},
    "huge empty shape": {"a": tensor(shape=(2**62, 0), offsets=(0, 0)), "b": tensor()},
    "fractional shape": {"a": tensor(shape=(4.5, 4))},
    "shape of text": {"a": tensor(shape="44")},
    "unknown dtype": {"a": tensor(dtype="F99")},
    "no dtype": {"a": {"shape": (4, 4), "data_offsets": (0, 64)}},
    "one offset": {"a": tensor(offsets=(64,))},
    "tensor is a number": {"a": 3},
    "metadata is a list": {"__metadata__": [1, 2], "a": tensor()},
    "metadata is a number": {"__metadata__": 3, "a": tensor()},
    "metadata of numbers": {"__metadata__": {"vision_config": 3}, "a": tensor()},
    "not an object": ["a"],
    "not UTF-8": b'{"\xff\xfe": 3}',
    "not JSON": b'{"a": ',
    "deeply nested": b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "no length": b"",
}


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("place", [MODEL, VISION, VAE])
def test_a_hostile_header_is_refused(case, place, repository):
    message = refusal(repository.raw(raw_safetensors(HEADERS[case]), place))
    assert Path(place).name in message and "Download it again" in message


@pytest.mark.parametrize("start", [b"<", b" <", b"\n\t"])
def test_a_header_length_that_reads_like_text_is_a_number(start, repository):
    content = (repository.root / MODEL).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    wanted = next(n for n in range(length, length + 2**16) if n.to_bytes(8, "little").startswith(start))
    header = content[8 : 8 + length].ljust(wanted)
    check_weights(loading.load(**repository.raw(raw_safetensors(header, content[8 + length :]))), repository.weights)


@pytest.mark.parametrize("length", [65, 2**27, 2**40, 2**63, 2**64 - 1])
def test_a_header_length_is_not_believed(length, repository):
    before = resident()
    message = refusal(repository.raw(struct.pack("<Q", length) + b'{"a": 3}' + b" " * 50))
    assert "not a safetensors file" in message and resident() - before < 0.1e9


ODD_NUMBERS = [None, True, -1, 0, 1, 3, 2**31, 2**53, 2**63, 2**64, 1e300]
ODD_VALUES = [*ODD_NUMBERS, "", "F64", "I8", [], [0], [-1], [1, 1], [2**62, 4], {}, [[[]]]]


def mutate_entries(raw: bytes, chance: random.Random) -> bytes:
    """One field of one tensor becomes something odd, or the tensor itself goes, moves or gets another name."""
    entries = json.loads(raw)
    name = chance.choice(list(entries))
    kind = chance.randrange(6)
    if kind == 0:
        del entries[name]
    elif kind == 1:
        renamed = name[: chance.randrange(len(name))] + chance.choice(["", "x", ".weight", "9999999999"])
        entries[renamed] = entries.pop(name)
    elif kind == 2:
        entries[name] = chance.choice(ODD_VALUES)
    elif kind == 3:
        entries[name]["shape"] = entries[name]["shape"][::-1] + [1]
    elif kind == 4:
        entries[name]["data_offsets"][chance.randrange(2)] += chance.choice([-4, 4, 2**40])
    else:
        entries[name][chance.choice(["dtype", "shape", "data_offsets"])] = chance.choice(ODD_VALUES)
    return json.dumps(entries).encode()


def mutate_bytes(raw: bytes, chance: random.Random) -> bytes:
    """A few bytes are overwritten, go, or come in between."""
    out = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(out))
        out[start : start + chance.randrange(3)] = bytes(chance.randrange(256) for _ in range(chance.randrange(3)))
    return bytes(out)


@pytest.mark.parametrize("mutate", [mutate_entries, mutate_bytes], ids=["entries", "bytes"])
@pytest.mark.parametrize("place", [MODEL, VISION])
def test_a_mutated_header_is_refused_or_harmless(place, mutate, repository):
    loaded = loading.load(repository.root / MODEL)  # in use, so what is not mutated is not built anew every time
    content = (repository.root / place).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    chance, refused = random.Random(f"{place} {mutate.__name__}"), 0
    for _ in range(150):
        repository.raw(raw_safetensors(mutate(content[8 : 8 + length], chance), content[8 + length :]), place)
        try:
            assert loading.load(repository.root / MODEL)[2] is loaded[2]
        except CheckpointError as error:
            assert Path(place).name in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100
