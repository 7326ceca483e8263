"""The toolchains by name, as `pins.toml` has them."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from qlangchain.errors import InvalidInputError

_PINS: Final = Path(__file__).with_name("pins.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """What goes into an environment, and what it takes: bytes on the disk while it is made, minutes to make it.

    `setting` is the field of `Settings` whose interpreter is used instead, where it is set.
    """

    name: str
    purpose: str
    python: str
    requirements: tuple[str, ...]
    check: str
    size_bytes: int
    minutes: float
    uninstall: tuple[str, ...] = ()
    setting: str | None = None
    maintained: bool = True
    note: str = ""

    @property
    def hash(self) -> str:
        """12 hex digits that change with whatever changes what is installed."""
        content = json.dumps([self.requirements, self.uninstall, self.check])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def directory(self) -> str:
        """The name of its environment's directory."""
        return f"{self.name}-{self.hash}"


def read(path: Path | None = None) -> Mapping[str, Toolchain]:
    """Read toolchains from a file like `pins.toml`, which is the default."""
    path = path or _PINS
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Mapping[str, Toolchain]:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    found = {}
    for name, written in content.items():
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in written.items()}
        found[name] = Toolchain(name=name, **values)
    return found


def find(name: str, known: Mapping[str, Toolchain] | None = None) -> Toolchain:
    """Return the toolchain of that name; raises InvalidInputError that lists the known ones."""
    known = read() if known is None else known
    if name not in known:
        raise InvalidInputError(f"There is no toolchain named {name!r}.", hint=f"Known: {', '.join(known)}.")
    return known[name]
