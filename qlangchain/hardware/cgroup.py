"""The container's share of the machine: memory limits and CPU quotas of cgroup v1 and v2.

/proc/self/cgroup names this process's group for each controller, /proc/self/mountinfo says where the
groups can be seen, and the limits are small files in the group's directory. A limit of any ancestor binds
too, so all of them are read, up to the mount point. Hybrid systems mount both versions; both are read, and
a version without the controller simply has no such files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qlangchain.hardware.files import one_line, read_fields, read_number, read_text, whole_number

# v1 writes "no limit" as the largest multiple of the page size in 63 bits; v2 writes `max`.
UNLIMITED = 1 << 60
# The kernel's PATH_MAX: a longer path cannot be a group's.
_LONGEST_PATH = 4096
# version -> the files with limits, the file with the memory in use, the names of inactive file pages in
# memory.stat. Past memory.high the kernel throttles a group until it crawls, so it binds like memory.max.
_MEMORY_FILES: dict[int, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "inactive_file")),
    2: (("memory.max", "memory.high"), "memory.current", ("inactive_file",)),
}


@dataclass(frozen=True, slots=True)
class Group:
    """One control group: its path as /proc/self/cgroup writes it, and the directory with its files."""

    version: int
    path: str
    directory: Path


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A limit in bytes, and how much of it is in use and cannot be reclaimed (None where not known)."""

    limit: int
    used: int | None
    source: str


@dataclass(frozen=True, slots=True)
class CpuQuota:
    """A limit in CPUs (2.5 is two and a half CPUs' time)."""

    cpus: float
    source: str


@dataclass(frozen=True, slots=True)
class _Mount:
    version: int
    root: tuple[str, ...]
    point: tuple[str, ...]
    controllers: frozenset[str]


def memory_limits(root: Path) -> list[MemoryLimit]:
    """Return every memory limit that binds this process, nearest group first; swap is ignored."""
    limits = []
    for group in groups(root, "memory"):
        names, usage, cache = _MEMORY_FILES[group.version]
        for name in names:
            limit = read_number(group.directory / name)
            if limit is not None and limit < UNLIMITED:
                used = _used(group.directory, usage, cache)
                limits.append(MemoryLimit(limit, used, f"cgroup v{group.version} {name} of {group.path}"))
    return limits


def _used(directory: Path, usage: str, cache: tuple[str, ...]) -> int | None:
    current = read_number(directory / usage)
    if current is None:
        return None
    # File pages that nobody has touched lately are dropped before anything is killed: they count as free.
    stat = read_fields(directory / "memory.stat")
    reclaimable = next((size for name in cache if (size := whole_number(stat.get(name, ""))) is not None), 0)
    return max(0, current - reclaimable)


def cpu_quotas(root: Path) -> list[CpuQuota]:
    """Return every CPU quota that binds this process, nearest group first."""
    quotas = []
    for group in groups(root, "cpu"):
        if group.version == 2:
            name = "cpu.max"
            quota_text, _, period_text = read_text(group.directory / name, 64).strip().partition(" ")
            quota, period = whole_number(quota_text), whole_number(period_text)
        else:
            name = "cpu.cfs_quota_us"
            quota = read_number(group.directory / name)
            period = read_number(group.directory / "cpu.cfs_period_us")
        if quota and period:
            quotas.append(CpuQuota(quota / period, f"cgroup v{group.version} {name} of {group.path}"))
    return quotas


def groups(root: Path, controller: str) -> list[Group]:
    """Return this process's groups for the controller, each followed by its ancestors up to the mount."""
    found: dict[Path, Group] = {}
    mounts = _mounts(root)
    for version, controllers, path in _memberships(root):
        if version == 1 and controller not in controllers:
            continue
        serving = [m for m in mounts if m.version == version and (version == 2 or controller in m.controllers)]
        parts = _parts(path)
        shown = [mount for mount in serving if parts[: len(mount.root)] == mount.root and ".." not in parts]
        # A path that no mount shows comes from another namespace; the mount point itself is then the best
        # that can be seen, and inside a container it is the container's own group.
        for mount in shown or serving:
            below = parts[len(mount.root) :] if shown else ()
            for depth in range(len(below), -1, -1):
                directory = root.joinpath(*mount.point, *below[:depth])
                name = one_line("/" + "/".join(mount.root + below[:depth]), 200)
                found.setdefault(directory, Group(version, name, directory))
    return list(found.values())


def _memberships(root: Path) -> list[tuple[int, frozenset[str], str]]:
    """Read lines such as `4:memory:/a/b` (v1) and `0::/a/b` (v2)."""
    found = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and path.startswith("/") and len(path) <= _LONGEST_PATH:
            version = 2 if hierarchy == "0" and not controllers else 1
            found.append((version, frozenset(controllers.split(",")), path))
    return found


def _mounts(root: Path) -> list[_Mount]:
    """Read the cgroup mounts of mountinfo: `id parent dev ROOT POINT options [tags] - TYPE source OPTIONS`."""
    found = []
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        before, dash, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if not dash or len(left) < 5 or right[0] not in ("cgroup", "cgroup2") or len(left[3]) > _LONGEST_PATH:
            continue
        version = 2 if right[0] == "cgroup2" else 1
        mount_root, point = _parts(_unescape(left[3])), _parts(_unescape(left[4]))
        if ".." not in point:  # the kernel never writes it; nothing outside `root` is to be read
            found.append(_Mount(version, mount_root, point, frozenset(right[-1].split(","))))
    return found


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in ("", "."))


def _unescape(text: str) -> str:
    """Undo mountinfo's octal escapes: a backslash and 040 stand for a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
