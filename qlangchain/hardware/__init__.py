"""What the machine has: memory, cores and GPUs, as this process may use them, each figure with its source.

    __init__.py   detect() and to_dict()
    overrides.py  QLANGCHAIN_MEMORY, _CORES, _VRAM and _BANDWIDTH, and parse_size()
    memory.py     physical memory, cut to the container's share
    cpu.py        usable physical cores, the processor's name and instruction sets
    cgroup.py     the container's limits (cgroup v1 and v2)
    gpu.py        the GPUs of every vendor
    nvidia.py     NVIDIA GPUs and their MIG slices, through NVML
    amd.py        AMD GPUs, through the files of their driver
    apple.py      Apple chips, through sysctl
    cards.py      which cards CUDA_VISIBLE_DEVICES and its like leave visible
    disk.py       the room where artifacts are kept
    bandwidth.py  with_bandwidth(): memory bandwidth, measured once and remembered
    files.py      reading files of /proc and /sys that may be missing, huge or garbage

Nothing heavy is imported before it is needed, and nothing is cached: memory that is free now may not be
free when a model loads, so ask again right before loading.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qlangchain import settings
from qlangchain.hardware import bandwidth, cpu, disk, gpu, memory, overrides
from qlangchain.hardware.bandwidth import with_bandwidth
from qlangchain.hardware.files import is_live, one_line
from qlangchain.hardware.overrides import parse_size
from qlangchain.types import Hardware

__all__ = ["detect", "parse_size", "to_dict", "with_bandwidth"]

_T = TypeVar("_T")


def detect(*, root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Hardware:
    """Look at this machine, or at the one whose files lie below `root` (a copy, or a test's invention).

    Sizes are in bytes; memory and cores are at least 1. What cannot be read is given as 1 (or as no GPU, no
    flags, None) and called "not known" in `sources`. The bandwidth is what an earlier `with_bandwidth` measured;
    nothing is measured here. Nothing is raised, except `InvalidInputError` for an override that
    makes no sense. NVML and the platform are always this machine's, whatever `root` is; the disk and what was
    measured are asked for this machine only.
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
    flags, sources["flags"] = _attempt(lambda: cpu.flags(root), lambda why: (frozenset(), why))
    speed: int | None
    if wanted.bandwidth is not None:
        speed, sources["bandwidth_bytes"] = wanted.bandwidth, overrides.BANDWIDTH
    else:
        speed, sources["bandwidth_bytes"] = _attempt(
            lambda: _remembered(root, environ, name, cores), lambda why: (None, why)
        )
    free, sources["disk_free"] = _attempt(lambda: _disk(root, environ), lambda why: (None, why))
    return Hardware(
        memory_total=total,
        memory_available=available,
        cores=cores,
        gpus=gpus,
        cpu=name,
        sources=sources,
        flags=flags,
        bandwidth_bytes=speed,
        disk_free=free,
    )


def _remembered(root: Path, environ: Mapping[str, str], cpu_name: str, cores: int) -> tuple[int | None, str]:
    if not is_live(root):
        return None, "not known: another machine's"
    known, source = bandwidth.remembered(settings.read(environ).store, cpu_name, cores)
    return (None if known is None else known.bytes_per_second), source


def _disk(root: Path, environ: Mapping[str, str]) -> tuple[int | None, str]:
    if not is_live(root):
        return None, "not known: another machine's"
    return disk.free(settings.read(environ).store)


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
        "flags": sorted(hardware.flags),
        "bandwidth_bytes": hardware.bandwidth_bytes,
        "disk_free": hardware.disk_free,
        "gpus": [
            {
                "vendor": card.vendor,
                "index": card.index,
                "name": card.name,
                "uuid": card.uuid,
                "total_bytes": card.total_bytes,
                "free_bytes": card.free_bytes,
                "compute_capability": card.compute_capability and list(card.compute_capability),
                "bandwidth_bytes": card.bandwidth_bytes,
                "bandwidth_source": card.bandwidth_source,
                "unified": card.unified,
            }
            for card in hardware.gpus
        ],
        "sources": dict(hardware.sources),
    }
