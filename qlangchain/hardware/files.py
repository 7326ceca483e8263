"""Reading small kernel files that may be missing, unreadable, huge or garbage. Nothing here raises."""

from __future__ import annotations

import re
from pathlib import Path

# A host with thousands of mounts has a mountinfo of some hundred KiB; nothing that is read here is larger.
READ_LIMIT = 4 << 20
# The largest number of CPUs that a stock Linux kernel is built for (CONFIG_NR_CPUS on x86-64).
MAX_CPUS = 8192

_WHOLE = re.compile(r"[0-9]{1,20}")
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def is_live(root: Path) -> bool:
    """Return whether `root` is the running system, so that the operating system itself may be asked too."""
    return root == Path("/")


def read_text(path: Path, limit: int = READ_LIMIT) -> str:
    """Return the first `limit` bytes of the file as text, or "" where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(limit).decode("utf-8", errors="replace")
    except (OSError, ValueError):  # ValueError: a null byte in a path that came out of another file
        return ""


def whole_number(text: str) -> int | None:
    """Return the text as a number from 0 up, or None where it is anything else (`max`, -1, garbage)."""
    text = text.strip()
    return int(text) if _WHOLE.fullmatch(text) else None


def read_number(path: Path) -> int | None:
    """Return the one number that the file holds, or None."""
    return whole_number(read_text(path, 64))


def read_fields(path: Path, separator: str = " ") -> dict[str, str]:
    """Return a file of `name<separator>value` lines as a dict; the first line of a name wins."""
    fields: dict[str, str] = {}
    for line in read_text(path).splitlines():
        name, _, value = line.partition(separator)
        fields.setdefault(name.strip(), value.strip())
    return fields


def one_line(text: str, longest: int = 80) -> str:
    """Return the text fit for a terminal or a log: one line, no control characters, at most `longest` of them."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:longest]


def cpu_list(text: str) -> set[int]:
    """Return the CPU numbers of a kernel list such as `0-3,8`; a part that is no range is left out."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        match = _RANGE.fullmatch(part.strip())
        if match:
            first, last = int(match[1]), int(match[2] or match[1])
            numbers.update(range(first, min(last + 1, MAX_CPUS)))
    return numbers
