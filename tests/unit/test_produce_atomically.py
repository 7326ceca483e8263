"""Nothing half-written is ever left behind: faults, full disks, kills, and quantizers that fail."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from unit.tiny_model import (
    Make,
    nothing_else,
)
from unit.tiny_model import make as make  # noqa: PLC0414 - a fixture

from qlangchain.artifacts.headers import check_servable, read_gguf_header
from qlangchain.errors import (
    DiskFullError,
    MissingDependencyError,
    ProductionError,
    QlangchainError,
    StoreLockedError,
)
from qlangchain.produce import gguf, kquants
from qlangchain.produce.gguf import produce_gguf


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A directory that holds an older file, which must survive every failure."""
    directory = tmp_path / "room"
    directory.mkdir()
    (directory / "out.gguf").write_bytes(b"older")
    return directory


FAULTS = [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error"),
          KeyboardInterrupt(), MemoryError(), RuntimeError("a bug")]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("place", ["write", "fsync", "verify", "replace", "progress"])
def test_a_failure_leaves_what_was_there(
    make: Make, room: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, place: str
) -> None:
    source = make()
    calls = 0

    def fail(*_: Any, **__: Any) -> Any:
        nonlocal calls
        calls += 1
        if place in ("write", "progress") and calls < 5:  # in the middle
            return b""
        raise fault

    if place == "write":
        encode = gguf._encode
        monkeypatch.setattr(gguf, "_encode", lambda *args: fail() or encode(*args))
    elif place == "verify":
        monkeypatch.setattr(gguf, "verify_gguf", fail)
    elif place != "progress":
        monkeypatch.setattr(os, place, fail)
    expected = {errno.ENOSPC: DiskFullError, errno.EIO: ProductionError}.get(getattr(fault, "errno", None), type(fault))
    with pytest.raises(expected):
        produce_gguf(source, room / "out.gguf", "Q8_0", progress=fail if place == "progress" else None)
    monkeypatch.undo()
    assert nothing_else(room) == ["out.gguf"]
    assert (room / "out.gguf").read_bytes() == b"older"
    produce_gguf(source, room / "out.gguf", "Q8_0")
    check_servable(read_gguf_header(room / "out.gguf"))


def test_a_disk_without_room_is_seen_before_writing(make: Make, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    monkeypatch.setattr(gguf, "write_gguf", lambda *_: pytest.fail("it began to write"))
    with pytest.raises(DiskFullError, match="1 are free"):
        produce_gguf(source, room / "out.gguf", "Q8_0")
    assert (room / "out.gguf").read_bytes() == b"older"


CHILD = """
import os, resource, signal, sys
from pathlib import Path
from qlangchain.produce.gguf import produce_gguf
source, target, how = sys.argv[1:]
if how == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    produce_gguf(Path(source), Path(target), "F32",
                 progress=lambda done, _: done > 60_000 and os.kill(os.getpid(), signal.SIGKILL))
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")
@pytest.mark.parametrize(("how", "answer"), [("limit", "DiskFullError"), ("kill", "")])
def test_a_real_end_in_the_middle(make: Make, room: Path, how: str, answer: str) -> None:
    source = make()
    path = os.pathsep.join(part for part in sys.path if part)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(room / "out.gguf"), how],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.stdout.strip() == answer, done.stderr
    assert (room / "out.gguf").read_bytes() == b"older"
    if how == "kill":
        assert nothing_else(room) != ["out.gguf"]  # what only a kill leaves is removed by the next run
        produce_gguf(source, room / "out.gguf", "Q8_0")
    assert nothing_else(room) == ["out.gguf"]


def test_two_at_one_file_do_not_disturb_each_other(make: Make, room: Path) -> None:
    source = make()

    def second(done: int, total: int) -> None:
        if not refused:
            with pytest.raises(StoreLockedError, match="making out"):
                refused.append(produce_gguf(source, room / "out.gguf", "Q8_0"))
            refused.append(True)

    refused: list[Any] = []
    produce_gguf(source, room / "out.gguf", "Q4_0", progress=second)
    assert refused == [True] and nothing_else(room) == ["out.gguf"]
    check_servable(read_gguf_header(room / "out.gguf"))


def test_progress_ends_at_the_file_s_size(make: Make, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = produce_gguf(make(), tmp_path / "new" / "out.gguf", "Q4_1", progress=lambda *both: seen.append(both))
    assert seen[-1] == (out.stat().st_size, out.stat().st_size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_k_quants_need_a_quantizer(make: Make, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kquants.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    assert not kquants.available()
    with pytest.raises(MissingDependencyError) as caught:
        produce_gguf(make(), room / "out.gguf", "Q4_K_M")
    assert "pip install 'qlangchain[llama-cpp-python]'" in caught.value.hint
    assert nothing_else(room) == ["out.gguf"]


FAKE = {
    "copies": 'cp "$1" "$2"',
    "aborts": 'echo "GGML_ASSERT failed" >&2; kill -ABRT $$',
    "fails": "echo cannot; exit 1",
    "writes half": 'head -c 5000 "$1" > "$2"',
    "writes nothing": "exit 0",
    "is full": 'echo "No space left on device"; exit 1',
}


@pytest.mark.skipif(os.name != "posix", reason="the stand-ins are shell scripts")
@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("copies", ProductionError, "is not Q4_K_M"),
        ("aborts", ProductionError, "GGML_ASSERT failed"),
        ("fails", ProductionError, "ended with 1"),
        ("writes half", ProductionError, "is not right"),
        ("writes nothing", ProductionError, "ended with 0"),
        ("is full", DiskFullError, "is full"),
    ],
)
def test_a_quantizer_that_fails_leaves_nothing(
    make: Make, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    what: str, error: type[QlangchainError], words: str,
) -> None:  # fmt: skip
    tool = tmp_path / "bin" / "llama-quantize"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{FAKE[what]}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(kquants.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(error, match=words):
        produce_gguf(make(), room / "out.gguf", "Q4_K_M")
    assert nothing_else(room) == ["out.gguf"]
    assert (room / "out.gguf").read_bytes() == b"older"
