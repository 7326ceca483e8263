"""What the machine has: memory, cores and GPUs, as this process may use them, each figure with its source.

    __init__.py   detect() and to_dict()
    overrides.py  QLANGCHAIN_MEMORY, QLANGCHAIN_CORES, QLANGCHAIN_VRAM and parse_size()
    memory.py     physical memory, cut to the container's share
    cpu.py        usable physical cores, the processor's name and instruction sets
    cgroup.py     the container's limits (cgroup v1 and v2)
    gpu.py        the GPUs of every vendor
    nvidia.py     NVIDIA GPUs and their MIG slices, through NVML
    amd.py        AMD GPUs, through the files of their driver
    cards.py      which cards CUDA_VISIBLE_DEVICES and its like leave visible
    files.py      reading files of /proc and /sys that may be missing, huge or garbage

Nothing heavy is imported before it is needed, and nothing is cached: memory that is free now may not be
free when a model loads, so ask again right before loading.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qlangchain.hardware import cpu, gpu, memory, overrides
from qlangchain.hardware.files import one_line
from qlangchain.hardware.overrides import parse_size
from qlangchain.types import Hardware

__all__ = ["detect", "parse_size", "to_dict"]

_T = TypeVar("_T")


def detect(*, root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Hardware:
    """Look at this machine, or at the one whose files lie below `root` (a copy, or a test's invention).

    Sizes are in bytes; memory and cores are at least 1. What cannot be read is given as 1 (or as no GPU)
    and called "not known" in `sources`. Nothing is raised, except `InvalidInputError` for an override that
    makes no sense. NVML and the platform are always this machine's, whatever `root` is.
    """
    wanted = overrides.read(environ)
    sources: dict[str, str] = {}

    if wanted.memory is not None:
        total = available = wanted.memory
        sources["memory_total"] = sources["memory_available"] = overrides.MEMORY
    else:
        found = _attempt(lambda: memory.detect(root), memory.unknown)
        total, available = found.total, found.available
        sources["memory_total"] = found.total_source
        sources["memory_available"] = found.available_source

    if wanted.cores is not None:
        cores, sources["cores"] = wanted.cores, overrides.CORES
    else:
        cores, sources["cores"] = _attempt(lambda: cpu.cores(root), lambda why: (1, why))

    if wanted.vram is not None:
        gpus, sources["gpus"] = gpu.imagined(wanted.vram), overrides.VRAM
    else:
        gpus, sources["gpus"] = _attempt(lambda: gpu.detect(root, environ, total, available), lambda why: ((), why))

    name, sources["cpu"] = _attempt(lambda: cpu.describe(root), lambda why: ("", why))
    return Hardware(memory_total=total, memory_available=available, cores=cores, gpus=gpus, cpu=name, sources=sources)


def _attempt(detector: Callable[[], _T], fallback: Callable[[str], _T]) -> _T:
    try:
        return detector()
    except Exception as error:
        # Detection runs before every plan, on machines that nobody has seen: a surprise in one figure must
        # cost that figure alone. Its source then carries the surprise, and a test holds that it stays rare.
        return fallback(f"not known: the detector failed ({type(error).__name__}: {one_line(str(error))})")


def to_dict(hardware: Hardware) -> dict[str, Any]:
    """Return the hardware as plain dicts, lists, strings and numbers, ready for JSON. Sizes are in bytes."""
    return {
        "memory_total": hardware.memory_total,
        "memory_available": hardware.memory_available,
        "cores": hardware.cores,
        "cpu": hardware.cpu,
        "gpus": [
            {
                "vendor": card.vendor,
                "index": card.index,
                "name": card.name,
                "uuid": card.uuid,
                "total_bytes": card.total_bytes,
                "free_bytes": card.free_bytes,
            }
            for card in hardware.gpus
        ],
        "sources": dict(hardware.sources),
    }
