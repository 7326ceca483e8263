"""The processor: physical cores that this process may use, its name, and the instruction sets that matter.

Threads of one core share its arithmetic units, and decoding is bound by memory, so an engine gains nothing
from more threads than physical cores. What may be used is cut by the affinity mask (taskset, cpusets) and by
the container's CPU quota.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
from pathlib import Path

from qlangchain.hardware import apple, cgroup
from qlangchain.hardware.files import cpu_list, is_live, one_line, read_fields, read_text

# On a large machine the kernel takes milliseconds per block of /proc/cpuinfo to sample the clock of every
# CPU; the name and the flags stand in the first block, and only that much is read for them.
_FIRST_BLOCK = 16 << 10
# What is shown beside the name -> the names that the kernel gives it (arm64 calls neon asimd).
_INSTRUCTION_SETS = {
    "avx2": {"avx2"},
    "avx512f": {"avx512f"},
    "amx": {"amx_tile", "amx_int8", "amx_bf16"},
    "neon": {"neon", "asimd"},
}
# Every set that ggml, oneDNN or vLLM have kernels for, in one spelling -> other spellings: Linux's of arm64, and
# the end of Apple's sysctl names (hw.optional.arm.FEAT_DotProd).
_FLAGS: dict[str, set[str]] = {
    "sse4_2": set(), "avx": set(), "f16c": set(), "fma": set(), "avx2": set(), "avx_vnni": set(),
    "avx512f": set(), "avx512bw": set(), "avx512vl": set(), "avx512vbmi": {"avx512_vbmi"}, "avx512_vnni": set(),
    "avx512_bf16": set(), "avx512_fp16": set(), "amx_tile": set(), "amx_int8": set(), "amx_bf16": set(),
    "neon": {"asimd", "advsimd"}, "fp16": {"asimdhp", "feat_fp16"}, "dotprod": {"asimddp", "feat_dotprod"},
    "i8mm": {"feat_i8mm"}, "bf16": {"feat_bf16"}, "sve": set(), "sve2": set(), "sme": {"feat_sme"},
    "rvv": {"zve64x"}, "vsx": set(),
}  # fmt: skip


def cores(root: Path) -> tuple[int, str]:
    """Return the number of usable physical cores, at least 1, and its source."""
    count, source = _physical(root)
    for quota in cgroup.cpu_quotas(root):
        allowed = max(1, int(quota.cpus))
        if allowed < count:
            count, source = allowed, f"{quota.source} ({quota.cpus:g} CPUs)"
    return count, source


def _physical(root: Path) -> tuple[int, str]:
    usable, mask = _usable(root)
    if not usable:
        return _asked(root)
    where = f"{len(usable)} CPU{'s' if len(usable) > 1 else ''} in the {mask}"
    topology = root / "sys/devices/system/cpu"
    siblings = {number: _siblings(topology / f"cpu{number}" / "topology", number) for number in usable}
    if any(siblings.values()):
        # A CPU without a readable topology counts as a core of its own.
        return len({group or frozenset({number}) for number, group in siblings.items()}), f"{where}, thread siblings"
    places = _processors(root)
    known = {places.get(number) for number in usable}
    if None not in known:
        return len(known), f"{where}, core ids in /proc/cpuinfo"
    return len(usable), f"{where}; which of them share a core is not known"


def _usable(root: Path) -> tuple[set[int], str]:
    """Return the numbers of the CPUs that this process may run on, and what says so."""
    if is_live(root) and hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):  # blocked by a sandbox: the files below say nearly the same
            return set(os.sched_getaffinity(0)), "affinity mask"
    online = cpu_list(read_text(root / "sys/devices/system/cpu/online"))
    allowed = cpu_list(read_fields(root / "proc/self/status", ":").get("Cpus_allowed_list", ""))
    if allowed and online:  # the mask may name CPUs that the machine does not have
        allowed &= online
    if allowed:
        return allowed, "Cpus_allowed_list of /proc/self/status"
    if online:
        return online, "list of CPUs online"
    return set(_processors(root)), "list of /proc/cpuinfo"


def _siblings(topology: Path, number: int) -> frozenset[int]:
    # Kernels from 5.3 on have both names, older ones only the second.
    for name in ("core_cpus_list", "thread_siblings_list"):
        group = cpu_list(read_text(topology / name))
        if number in group:
            return frozenset(group)
    return frozenset()


def _processors(root: Path) -> dict[int, tuple[str, str] | None]:
    """Return CPU number -> (socket, core) from /proc/cpuinfo, or None for a CPU without a core id (arm64)."""
    found: dict[int, tuple[str, str] | None] = {}
    for block in read_text(root / "proc/cpuinfo").split("\n\n"):
        fields = _fields(block)
        core = fields.get("core id")
        for number in cpu_list(fields.get("processor", "")):
            found[number] = None if core is None else (fields.get("physical id", "0"), core)
    return found


def _asked(root: Path) -> tuple[int, str]:
    """Ask psutil and Python, where there are no files to read (macOS, Windows)."""
    if not is_live(root):
        return 1, "not known: no affinity mask, no CPU list, no /proc/cpuinfo; set QLANGCHAIN_CORES"
    with contextlib.suppress(Exception):  # not installed, or it does not know the platform
        count = importlib.import_module("psutil").cpu_count(logical=False)
        if count:
            return max(1, int(count)), "psutil, physical cores"
    return max(1, os.cpu_count() or 1), "os.cpu_count; which of them share a core is not known"


def flags(root: Path) -> tuple[frozenset[str], str]:
    """Return the instruction sets that engines have kernels for, such as {"avx2", "avx512_vnni"}, and the source.

    They are read, not probed: /proc/cpuinfo on Linux, sysctl on macOS, and nothing where neither is there.
    """
    fields = _fields(read_text(root / "proc/cpuinfo", _FIRST_BLOCK).split("\n\n")[0])
    names = set((fields.get("flags") or fields.get("Features") or "").lower().split())
    source = "/proc/cpuinfo"
    if not names and is_live(root):
        names, source = apple.features(), "sysctl hw.optional"
        if platform.machine().lower() in ("arm64", "aarch64"):
            names.add("asimd")  # part of every 64-bit Arm processor
            source += " and platform.machine"
    known = frozenset(flag for flag, others in _FLAGS.items() if names & {flag, *others})
    return (known, source) if known else (known, "not known: no flags in /proc/cpuinfo")


def describe(root: Path) -> tuple[str, str]:
    """Return the processor's name with its instruction sets, such as "AMD EPYC (avx2, avx512f)", and the source."""
    fields = _fields(read_text(root / "proc/cpuinfo", _FIRST_BLOCK).split("\n\n")[0])
    flags = set((fields.get("flags") or fields.get("Features") or "").lower().split())
    name = fields.get("model name") or fields.get("Processor") or fields.get("cpu model") or ""
    source = "/proc/cpuinfo"
    if not name and is_live(root):
        # On arm64 Linux has no name to give; macOS and Windows have no such file.
        name = platform.machine()
        source = "/proc/cpuinfo and platform.machine" if flags else "platform.machine"
        if name.lower() in ("arm64", "aarch64"):
            flags.add("asimd")  # part of every 64-bit Arm processor
    known = [label for label, names in _INSTRUCTION_SETS.items() if flags & names]
    name = one_line(name)
    shown = f"{name} ({', '.join(known)})" if known else name
    return (shown.strip(), source) if shown else ("", "not known: no name and no flags in /proc/cpuinfo")


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}
