"""Planning for another machine: environment variables that stand in for what would be detected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from qlangchain.errors import InvalidInputError
from qlangchain.hardware.files import MAX_CPUS

MEMORY = "QLANGCHAIN_MEMORY"
CORES = "QLANGCHAIN_CORES"
VRAM = "QLANGCHAIN_VRAM"
BANDWIDTH = "QLANGCHAIN_BANDWIDTH"

# No machine has an exbibyte, and the kernel too writes numbers from here on where it means "no limit".
LARGEST_SIZE = 1 << 60
# Below this a figure is surely a unit forgotten: `QLANGCHAIN_MEMORY=16` does not mean 16 bytes.
_SMALLEST_MEMORY = 1 << 20

_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?)\s*(?:([kmgtp])(ib?|b)?|b)?", re.ASCII | re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the user asks to plan for, None where the machine is to be looked at.

    Sizes are in bytes, and `bandwidth`, that of the cores' memory, in bytes per second.
    """

    memory: int | None = None
    cores: int | None = None
    vram: int | None = None
    bandwidth: int | None = None


def parse_size(text: str) -> int:
    """Return a size such as "24GiB", "512 MB", "1.5T" or "1048576" in bytes.

    KiB, MiB, GiB, TiB and PiB are powers of 1024, and so are the bare letters K, M, G, T and P, as in the
    options of most programs; kB, MB, GB, TB and PB are powers of 1000. Without a unit it is bytes. Anything
    else, a negative size, and 1 EiB or more raise `InvalidInputError`.
    """
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise InvalidInputError(f"{_clip(text)} is not a size.", hint="Write a number and a unit, such as 16GiB.")
    unit, suffix = (match[2] or "").lower(), (match[3] or "").lower()
    size = Fraction(match[1]) * (1000 if suffix == "b" else 1024) ** _POWERS.get(unit, 0)
    if not unit and size.denominator != 1:
        raise InvalidInputError(f"{_clip(text)} is a fraction of a byte.", hint="Write the unit, such as 0.5GiB.")
    if size >= LARGEST_SIZE:
        raise InvalidInputError(f"{_clip(text)} is larger than any memory.", hint="It must be below 1 EiB.")
    return int(size)


def read(environ: Mapping[str, str]) -> Overrides:
    """Read the four variables; an empty one counts as unset, a senseless one raises `InvalidInputError`."""
    return Overrides(
        memory=_size(environ, MEMORY, zero_allowed=False),
        cores=_count(environ, CORES),
        vram=_size(environ, VRAM, zero_allowed=True),
        bandwidth=_size(environ, BANDWIDTH, zero_allowed=False, per_second=True),
    )


def _size(environ: Mapping[str, str], variable: str, *, zero_allowed: bool, per_second: bool = False) -> int | None:
    raw = environ.get(variable, "").strip()
    if not raw:
        return None
    try:
        size = parse_size(raw.removesuffix("/s") if per_second else raw)
    except InvalidInputError as error:
        raise InvalidInputError(f"{variable}: {error.message}", hint=error.hint) from None
    if size < _SMALLEST_MEMORY and not (size == 0 and zero_allowed):
        example = "50GB/s" if per_second else "16GiB"
        hint = f"Write the unit, such as {example}" + (", or 0 for no GPU." if zero_allowed else ".")
        raise InvalidInputError(f"{variable}: {_clip(raw)} is less than 1 MiB.", hint=hint)
    return size


def _count(environ: Mapping[str, str], variable: str) -> int | None:
    raw = environ.get(variable, "").strip()
    if not raw:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", raw) or not 1 <= int(raw) <= MAX_CPUS:
        raise InvalidInputError(
            f"{variable}: {_clip(raw)} is not a number of cores.", hint=f"It must be from 1 to {MAX_CPUS}."
        )
    return int(raw)


def _clip(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
