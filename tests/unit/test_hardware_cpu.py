"""Usable cores and the processor's description."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import qlangchain
from qlangchain.hardware import cgroup, cpu
from qlangchain.hardware.files import MAX_CPUS, cpu_list

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def build(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def machine(cores: int, threads: int = 2, allowed: str | None = None) -> dict[str, str]:
    """A machine that numbers its threads as Linux does: CPU n and CPU n + cores are one core."""
    count = cores * threads
    files = {"sys/devices/system/cpu/online": f"0-{count - 1}\n"}
    for number in range(count):
        group = ",".join(str(number % cores + cores * thread) for thread in range(threads))
        files[f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"] = group + "\n"
    if allowed is not None:
        files["proc/self/status"] = f"Name:\tpython\nCpus_allowed_list:\t{allowed}\n"
    return files


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [(None, 8), ("0-15", 8), ("0-255", 8), ("0-3", 4), ("0,8", 1), ("0-1,8-9", 2), ("3", 1), ("junk", 8), ("", 8)],
)
def test_physical_cores_inside_the_affinity_mask(tmp_path: Path, allowed: str | None, expected: int) -> None:
    count, source = cpu.cores(build(tmp_path, machine(8, allowed=allowed)))
    assert count == expected
    assert "thread siblings" in source


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-3,8\n", {0, 1, 2, 3, 8}), ("", set()), ("3-1", set()), ("a,2,-1,4-", {2}), ("0-99999", set(range(MAX_CPUS)))],
)
def test_cpu_lists(text: str, expected: set[int]) -> None:
    assert cpu_list(text) == expected


def test_newer_kernels_call_it_core_cpus_list(tmp_path: Path) -> None:
    files = {"sys/devices/system/cpu/online": "0-3"}
    for number in range(4):
        files[f"sys/devices/system/cpu/cpu{number}/topology/core_cpus_list"] = "0-1" if number < 2 else "2-3"
    assert cpu.cores(build(tmp_path, files))[0] == 2


def test_core_ids_serve_where_there_is_no_topology(tmp_path: Path) -> None:
    blocks = [f"processor\t: {n}\nphysical id\t: {n // 4}\ncore id\t\t: {n % 2}\n" for n in range(8)]
    count, source = cpu.cores(build(tmp_path, {"proc/cpuinfo": "\n".join(blocks)}))
    assert (count, source) == (4, "8 CPUs in the list of /proc/cpuinfo, core ids in /proc/cpuinfo")


def test_cpus_without_core_ids_are_counted_and_the_doubt_is_told(tmp_path: Path) -> None:
    blocks = [f"processor\t: {n}\nCPU part\t: 0xd0c\n" for n in range(4)]
    count, source = cpu.cores(build(tmp_path, {"proc/cpuinfo": "\n".join(blocks)}))
    assert count == 4
    assert "not known" in source


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1000000 100000", 8),
        ("0 0", 8),
        ("100000", 8),
        ("junk junk", 8),
    ],
)
def test_v2_quota(tmp_path: Path, quota: str, expected: int) -> None:
    files = machine(8) | {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2_MOUNT}
    count, source = cpu.cores(build(tmp_path, files | {"sys/fs/cgroup/a/cpu.max": quota}))
    assert count == expected
    assert ("cgroup v2 cpu.max of /a" in source) == (expected != 8)


def test_the_tightest_quota_of_all_ancestors(tmp_path: Path) -> None:
    files = machine(8) | {
        "proc/self/cgroup": "0::/a/b\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/a/cpu.max": "300000 100000",
        "sys/fs/cgroup/a/b/cpu.max": "500000 100000",
    }
    assert cpu.cores(build(tmp_path, files)) == (3, "cgroup v2 cpu.max of /a (3 CPUs)")


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("150000", 1), ("400000", 4)])
def test_v1_quota(tmp_path: Path, quota: str, expected: int) -> None:
    group = "sys/fs/cgroup/cpu,cpuacct/job"
    files = machine(8) | {
        "proc/self/cgroup": "3:cpu,cpuacct:/job\n",
        "proc/self/mountinfo": "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n",
        f"{group}/cpu.cfs_quota_us": quota,
        f"{group}/cpu.cfs_period_us": "100000",
    }
    assert cpu.cores(build(tmp_path, files))[0] == expected


def test_no_files_at_all_is_one_core_and_says_so(tmp_path: Path) -> None:
    count, source = cpu.cores(tmp_path)
    assert count == 1
    assert source.startswith("not known")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the platform has no affinity mask")
def test_the_real_affinity_mask() -> None:
    """A process bound to one CPU, as by taskset, has one core, whatever the machine has."""
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from qlangchain import hardware\n"
        "found = hardware.detect(environ={'QLANGCHAIN_VRAM': '0'})\n"
        "print(found.cores, found.sources['cores'], sep='|')"
    )
    home = str(Path(next(iter(qlangchain.__path__))).parent)
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": home},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    count, _, source = run.stdout.strip().partition("|")
    assert count == "1"
    assert source.startswith("1 CPU in the affinity mask") or "cgroup" in source


def test_a_blocked_affinity_call_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> set[int]:
        raise PermissionError("sandbox")

    monkeypatch.setattr(os, "sched_getaffinity", refuse, raising=False)
    assert cpu.cores(Path("/"))[0] >= 1


def test_psutil_serves_where_there_are_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_usable", lambda root: (set(), ""))
    monkeypatch.setattr(cgroup, "cpu_quotas", lambda root: [])
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(cpu_count=lambda logical: 6))
    assert cpu.cores(Path("/")) == (6, "psutil, physical cores")
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(cpu_count=lambda logical: None))
    assert cpu.cores(Path("/"))[1].startswith("os.cpu_count")


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("model name\t: AMD EPYC 9654\nflags\t\t: fpu avx avx2 avx512f avx512_vnni\n", "AMD EPYC 9654 (avx2, avx512f)"),
        ("model name\t: Xeon\nflags\t\t: avx2 avx512f amx_tile amx_int8\n", "Xeon (avx2, avx512f, amx)"),
        ("model name\t: Old\nflags\t\t: fpu sse2\n", "Old"),
        ("processor\t: 0\nFeatures\t: fp asimd sve\n", "(neon)"),
        ("Processor\t: ARMv7\nFeatures\t: half neon\n", "ARMv7 (neon)"),
        ("model name\t: A\x1b[31m\x00  B\nflags\t\t:\n", "A [31m B"),
        ("model name\t: first\n\nmodel name\t: second\n", "first"),
        ("", ""),
    ],
)
def test_description(tmp_path: Path, cpuinfo: str, expected: str) -> None:
    assert cpu.describe(build(tmp_path, {"proc/cpuinfo": cpuinfo}))[0] == expected


def test_a_long_name_is_cut(tmp_path: Path) -> None:
    assert len(cpu.describe(build(tmp_path, {"proc/cpuinfo": "model name: " + "x" * 5000}))[0]) == 80


def test_arm64_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has no /proc/cpuinfo, and arm64 Linux has no name in it."""
    monkeypatch.setattr(cpu, "read_text", lambda path, limit=0: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert cpu.describe(Path("/")) == ("arm64 (neon)", "platform.machine")
