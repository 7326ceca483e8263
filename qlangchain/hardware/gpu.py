"""The GPUs of every vendor that a process started from here could use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qlangchain.hardware import amd, apple, nvidia
from qlangchain.types import Gpu


def detect(
    root: Path, environ: Mapping[str, str], memory_total: int, memory_available: int
) -> tuple[tuple[Gpu, ...], str]:
    """Return the visible GPUs, and for each vendor what they were found by or why there is none.

    `index` is a GPU's number among the visible ones of its vendor. `memory_total` and `memory_available`,
    in bytes, are the machine's, of which an Apple GPU has a share.
    """
    found = (nvidia.detect(environ), amd.detect(root, environ), apple.detect(memory_total, memory_available))
    return tuple(card for gpus, _ in found for card in gpus), "; ".join(source for _, source in found if source)


def imagined(size: int) -> tuple[Gpu, ...]:
    """Return one empty GPU of `size` bytes, or none for 0: a machine to plan for, not one that is there."""
    return (Gpu(name="imagined GPU", total_bytes=size, free_bytes=size),) if size else ()
