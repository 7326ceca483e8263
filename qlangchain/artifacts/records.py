"""What was learnt on this machine: runs and verdicts as JSON lines in the store, bounded, damage skipped.

A file of records is a help and no truth: a line that cannot be read is left out, a file that cannot be written is
done without, and of a file that grows too long the older half goes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

from qlangchain.selection.quality import Verdict
from qlangchain.selection.speed import Measurement

MOST_RECORDS: Final = 2000
_LONGEST_LINE: Final = 4096  # bytes
_LARGEST: Final = 1e15  # no speed, divergence or ratio is
_LARGEST_FILE: Final = MOST_RECORDS * _LONGEST_LINE

_T = TypeVar("_T", Measurement, Verdict)
_NAMES: Final[dict[type, str]] = {Measurement: "runs.jsonl", Verdict: "verdicts.jsonl"}


def remember(store: Path, record: Measurement | Verdict) -> bool:
    """Append a record; return whether it was kept. Nothing is raised.

    A line is written with one call, so that lines of processes that write at once do not mix.
    """
    line = json.dumps(dataclasses.asdict(record), ensure_ascii=False, allow_nan=True).encode() + b"\n"
    if len(line) > _LONGEST_LINE or _parse(line, type(record)) is None:
        return False
    path = _path(store, type(record))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - 1))
            # What a killed process left of its line must not swallow this one.
            torn = size > 0 and file.read(1) != b"\n"
            file.write(b"\n" + line if torn else line)
        if size > _LONGEST_LINE * 16:
            _shorten(path)
    except OSError:
        return False
    return True


def recall(store: Path, kind: type[_T]) -> list[_T]:
    """Return the latest records of a kind (`Measurement` or `Verdict`), oldest first, without damaged lines."""
    return [found for line in _lines(_path(store, kind)) if (found := _parse(line, kind)) is not None][-MOST_RECORDS:]


def verdict_of(store: Path, *artifacts: str) -> Verdict | None:
    """Return the latest verdict on any of these artifacts (digests, or "model:format")."""
    return next((one for one in reversed(recall(store, Verdict)) if one.artifact in artifacts), None)


def _path(store: Path, kind: type) -> Path:
    return store / "measured" / _NAMES[kind]


def _lines(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _LARGEST_FILE))
            return file.read(_LARGEST_FILE).splitlines()
    except OSError:
        return []


def _shorten(path: Path) -> None:
    lines = _lines(path)
    if len(lines) <= MOST_RECORDS:
        return
    descriptor, name = tempfile.mkstemp(prefix=".records-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"\n".join(lines[-MOST_RECORDS // 2 :]) + b"\n")
        os.replace(name, path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _parse(line: bytes, kind: type[Any]) -> Any:
    """Return the record of a line, or None where it is no such record or holds a number that cannot be."""
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    hints = get_type_hints(kind)
    if len(line) > _LONGEST_LINE or not isinstance(content, dict) or set(content) != set(hints):
        return None
    for name, value in content.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not 0 <= value < _LARGEST:  # which no NaN is, either
            return None
        wanted = str if hints[name] is str else float
        absent = value is None and hints[name] == (float | None)
        if not (absent or (number if wanted is float else isinstance(value, str))):
            return None
    return kind(**content)
