"""Physical memory as this process may use it: what the kernel reports, cut to the container's limits."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from qlangchain.hardware import cgroup
from qlangchain.hardware.files import is_live, read_fields, whole_number


@dataclass(frozen=True, slots=True)
class Memory:
    """Two figures in bytes, each at least 1, and where they come from."""

    total: int
    available: int
    total_source: str
    available_source: str


def detect(root: Path) -> Memory:
    """Return the memory that this process may use; swap is ignored, since weights in swap are useless."""
    found = _proc(root) or (_psutil() if is_live(root) else None)
    if found is None:
        return unknown("not known: no MemTotal in /proc/meminfo; set QLANGCHAIN_MEMORY")
    total, total_source = found.total, found.total_source
    available, available_source = found.available, found.available_source
    for limit in cgroup.memory_limits(root):
        if limit.limit < total:
            total, total_source = limit.limit, limit.source
        left = limit.limit - (limit.used or 0)
        if left < available:
            use = "its use is not known" if limit.used is None else "less the memory in use but for inactive file pages"
            available, available_source = left, f"{limit.source}, {use}"
    return Memory(max(1, total), max(1, min(total, available)), total_source, available_source)


def unknown(why: str) -> Memory:
    """Return the smallest memory there is: nothing will be planned to fit, and the source says why."""
    return Memory(1, 1, why, why)


def _proc(root: Path) -> Memory | None:
    fields = read_fields(root / "proc/meminfo", ":")
    sizes = {name: _kib(fields.get(name, "")) for name in ("MemTotal", "MemAvailable", "MemFree", "Inactive(file)")}
    total, available = sizes["MemTotal"], sizes["MemAvailable"]
    if not total or total >= cgroup.UNLIMITED:
        return None
    source = "MemAvailable in /proc/meminfo"
    if available is None:  # kernels before 3.14, and some that imitate Linux
        available = (sizes["MemFree"] or 0) + (sizes["Inactive(file)"] or 0)
        source = "MemFree and Inactive(file) in /proc/meminfo"
    return Memory(total, min(total, available), "MemTotal in /proc/meminfo", source)


def _kib(text: str) -> int | None:
    number, _, unit = text.partition(" ")
    size = whole_number(number)
    return size * 1024 if size is not None and unit.strip() == "kB" else None


def _psutil() -> Memory | None:
    """Ask psutil: macOS and Windows have no /proc."""
    try:
        seen = importlib.import_module("psutil").virtual_memory()
        total, available = int(seen.total), int(seen.available)
    except Exception:  # not installed, or a platform that it does not know: then nothing is known
        return None
    return Memory(total, available, "psutil, total", "psutil, available") if total > 0 else None
