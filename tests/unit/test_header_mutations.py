"""Ten thousand damaged and hostile headers of each format: no crash, no hang, no more memory than allowed."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlangchain.artifacts import bounds
from qlangchain.artifacts.headers import parse_safetensors_header, read_gguf_header, read_safetensors_header
from qlangchain.errors import CorruptFileError

CHILD = Path(__file__).with_name("header_mutations.py")
SECONDS, MIB = 2.0, 200.0


def read_many(kind: str, count: int, seed: int) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(CHILD), kind, str(count), str(seed)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    shown: dict[str, Any] = json.loads(child.stdout)
    print(kind, shown)
    assert shown["slowest_s"] < SECONDS
    assert shown["peak_mib"] < MIB
    return shown


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_ten_thousand_mutations(kind: str) -> None:
    outcomes = read_many(kind, 10_000, seed=1)["outcomes"]
    assert sum(outcomes.values()) == 10_000
    assert outcomes["accepted"] > 50  # mutations that are all refused at the first byte would show nothing
    assert outcomes["CorruptFileError"] > 5_000


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
@pytest.mark.parametrize("seed", range(2, 12))
def test_two_hundred_thousand_mutations(kind: str, seed: int) -> None:
    assert sum(read_many(kind, 20_000, seed)["outcomes"].values()) == 20_000


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_headers_made_to_be_expensive(kind: str) -> None:
    assert set(read_many(kind, 0, seed=0)["outcomes"]) == {"CorruptFileError"}


def test_text_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_TEXT", 100)
    path = tmp_path / "model.gguf"
    entry = struct.pack("<Q3sIQ", 3, b"key", 8, 98) + b"v" * 98
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry)
    with pytest.raises(CorruptFileError, match="more than 100 bytes of text"):
        read_gguf_header(path)


def test_a_header_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_SECONDS", 0.0)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + bytes(100))
    with pytest.raises(CorruptFileError, match="takes more than 0 s"):
        read_gguf_header(path)


def safetensors(raw: bytes, data: int) -> bytes:
    return struct.pack("<Q", len(raw)) + raw + bytes(data)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n", "\t: ")])
@pytest.mark.parametrize("order", [("dtype", "shape", "data_offsets"), ("data_offsets", "dtype", "shape")])
def test_every_way_to_write_the_same_header(
    tmp_path: Path, separators: tuple[str, str], order: tuple[str, ...]
) -> None:
    sizes = [4 * (number % 7) for number in range(20_000)]
    entries: dict[str, Any] = {"__metadata__": {'a\\"b{}': "} 中 \U0001f642", "format": "pt"}}
    at = 0
    for number, size in enumerate(sizes):
        entry = {"dtype": "F32", "shape": [size // 4], "data_offsets": [at, at + size]}
        entries[f"tensor é {number}"] = {key: entry[key] for key in order}
        at += size
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(json.dumps(entries, separators=separators).encode() + b"  ", at))
    header = read_safetensors_header(path)
    assert [tensor.nbytes for tensor in header.tensors.values()] == sizes
    assert list(header.tensors) == list(entries)[1:]
    assert header.metadata == entries["__metadata__"]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}',
        b'{"a":{"dtype":"U8","shape":[1,],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}',
        b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"\xff":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"a\n":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    ],
)
def test_what_json_does_not_allow_is_not_read(raw: bytes) -> None:
    data = safetensors(raw, 1)
    with pytest.raises(CorruptFileError, match="no JSON object"):
        parse_safetensors_header(Path("m.safetensors"), lambda start, stop: data[start:stop], len(data))
