"""Memory and the limits of containers, on invented machines."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qlangchain import hardware
from qlangchain.hardware import cgroup, memory

GIB = 1 << 30
MEMINFO = "MemTotal:       33554432 kB\nMemFree:         1048576 kB\nMemAvailable:   16777216 kB\n"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MEMORY = "33 30 0:29 {root} {point} rw - cgroup cgroup rw,memory\n"
V1_NO_LIMIT = "9223372036854771712\n"


def build(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_meminfo_alone(tmp_path: Path) -> None:
    found = memory.detect(build(tmp_path, {}))
    assert (found.total, found.available) == (32 * GIB, 16 * GIB)
    assert found.total_source == "MemTotal in /proc/meminfo"
    assert found.available_source == "MemAvailable in /proc/meminfo"


def test_old_kernels_have_no_memavailable(tmp_path: Path) -> None:
    meminfo = "MemTotal: 4194304 kB\nMemFree: 1048576 kB\nInactive(file): 524288 kB\n"
    found = memory.detect(build(tmp_path, {"proc/meminfo": meminfo}))
    assert found.available == GIB + GIB // 2
    assert "MemFree" in found.available_source


def test_v2_limit_with_reclaimable_file_pages(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/a/b"
    found = memory.detect(
        build(
            tmp_path,
            {
                "proc/self/cgroup": "0::/a/b\n",
                "proc/self/mountinfo": V2_MOUNT,
                f"{group}/memory.max": f"{8 * GIB}\n",
                f"{group}/memory.current": f"{5 * GIB}\n",
                f"{group}/memory.stat": f"anon 7\ninactive_file {2 * GIB}\nactive_file 9\n",
            },
        )
    )
    assert (found.total, found.available) == (8 * GIB, 5 * GIB)
    assert found.total_source == "cgroup v2 memory.max of /a/b"
    assert found.available_source.startswith("cgroup v2 memory.max of /a/b, less")


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_the_limit_of_any_ancestor_binds(tmp_path: Path, depth: int) -> None:
    """Total and available may be decided by different levels."""
    names = ["a", "b", "c"]
    files = {"proc/self/cgroup": "0::/a/b/c\n", "proc/self/mountinfo": V2_MOUNT}
    for level in range(4):
        group = "/".join(["sys/fs/cgroup", *names[:level]])
        files[f"{group}/memory.max"] = f"{4 * GIB}\n" if level == depth else "max\n"
        files[f"{group}/memory.current"] = f"{GIB}\n"
    found = memory.detect(build(tmp_path, files))
    assert (found.total, found.available) == (4 * GIB, 3 * GIB)
    assert found.total_source.endswith(" of /" + "/".join(names[:depth]))


def test_a_full_parent_leaves_less_than_the_smaller_child(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/a/memory.max": str(10 * GIB),
        "sys/fs/cgroup/a/memory.current": str(9 * GIB),
        "sys/fs/cgroup/a/b/memory.max": str(6 * GIB),
        "sys/fs/cgroup/a/b/memory.current": str(GIB),
    }
    found = memory.detect(build(tmp_path, files))
    assert (found.total, found.available) == (6 * GIB, GIB)
    assert found.total_source.endswith("of /a/b")
    assert " of /a," in found.available_source


def test_memory_high_binds_too(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/a/memory.max": "max",
        "sys/fs/cgroup/a/memory.high": str(3 * GIB),
    }
    found = memory.detect(build(tmp_path, files))
    assert (found.total, found.available) == (3 * GIB, 3 * GIB)
    assert "its use is not known" in found.available_source


def test_an_exhausted_limit_leaves_one_byte(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/memory.max": str(GIB),
        "sys/fs/cgroup/memory.current": str(2 * GIB),
    }
    assert memory.detect(build(tmp_path, files)).available == 1


def test_a_limit_above_the_machine_changes_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/memory.max": str(64 * GIB),
        "sys/fs/cgroup/memory.current": str(GIB),
    }
    found = memory.detect(build(tmp_path, files))
    assert (found.total, found.available) == (32 * GIB, 16 * GIB)
    assert found.available_source == "MemAvailable in /proc/meminfo"


def test_v1_with_joined_controllers_and_hierarchical_cache(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/jobs/one"
    files = {
        "proc/self/cgroup": "12:cpu,cpuacct:/x\n4:memory,hugetlb:/jobs/one\n1:name=systemd:/y\n",
        "proc/self/mountinfo": "33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,hugetlb,memory\n",
        f"{group}/memory.limit_in_bytes": f"{4 * GIB}\n",
        f"{group}/memory.usage_in_bytes": f"{2 * GIB}\n",
        f"{group}/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": V1_NO_LIMIT,
    }
    found = memory.detect(build(tmp_path, files))
    assert (found.total, found.available) == (4 * GIB, 3 * GIB)
    assert found.total_source == "cgroup v1 memory.limit_in_bytes of /jobs/one"


def test_v1_without_a_limit(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/\n",
        "proc/self/mountinfo": V1_MEMORY.format(root="/", point="/sys/fs/cgroup/memory"),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": V1_NO_LIMIT,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1",
    }
    assert cgroup.memory_limits(build(tmp_path, files)) == []


def test_a_bind_mounted_group_is_found_below_its_root(tmp_path: Path) -> None:
    """Inside a v1 container the path is the host's, and the mount shows only the container's part of it."""
    files = {
        "proc/self/cgroup": "4:memory:/docker/abc/inner\n",
        "proc/self/mountinfo": V1_MEMORY.format(root="/docker/abc", point="/sys/fs/cgroup/memory"),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
        "sys/fs/cgroup/memory/inner/memory.limit_in_bytes": str(GIB),
    }
    limits = cgroup.memory_limits(build(tmp_path, files))
    assert [(limit.limit, limit.source.split(" of ")[1]) for limit in limits] == [
        (GIB, "/docker/abc/inner"),
        (2 * GIB, "/docker/abc"),
    ]


@pytest.mark.parametrize("path", ["/elsewhere", "/../sibling"])
def test_a_group_of_another_namespace_falls_back_to_the_mount(tmp_path: Path, path: str) -> None:
    files = {
        "proc/self/cgroup": f"4:memory:{path}\n",
        "proc/self/mountinfo": V1_MEMORY.format(root="/docker/abc", point="/sys/fs/cgroup/memory"),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
    }
    assert memory.detect(build(tmp_path, files)).total == 2 * GIB


def test_another_groups_mount_does_not_bind(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/mine\n",
        "proc/self/mountinfo": V1_MEMORY.format(root="/other", point="/mnt/other")
        + V1_MEMORY.format(root="/", point="/sys/fs/cgroup/memory"),
        "mnt/other/memory.limit_in_bytes": str(GIB),
        "sys/fs/cgroup/memory/mine/memory.limit_in_bytes": str(3 * GIB),
    }
    assert memory.detect(build(tmp_path, files)).total == 3 * GIB


def test_each_controller_has_a_group_and_a_mount_of_its_own(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/mine\n3:cpu:/other\n",
        "proc/self/mountinfo": V1_MEMORY.format(root="/", point="/m") + "32 31 0:30 / /c rw - cgroup cgroup rw,cpu\n",
        "m/mine/memory.limit_in_bytes": str(3 * GIB),
        "m/other/memory.limit_in_bytes": str(GIB),
        "c/mine/memory.limit_in_bytes": str(2 * GIB),
    }
    assert [limit.limit for limit in cgroup.memory_limits(build(tmp_path, files))] == [3 * GIB]


def test_a_path_that_leaves_its_namespace_is_not_followed(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/../sibling\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/memory.max": str(2 * GIB),
        "sys/fs/sibling/memory.max": str(GIB),
    }
    assert [limit.limit for limit in cgroup.memory_limits(build(tmp_path, files))] == [2 * GIB]


@pytest.mark.parametrize("path", ["/a" * 50_000, "a", ""])
def test_a_path_that_cannot_be_is_no_group(tmp_path: Path, path: str) -> None:
    files = {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": V2_MOUNT}
    assert cgroup.groups(build(tmp_path, files), "memory") == []


def test_null_bytes_and_broken_text(tmp_path: Path) -> None:
    root = build(tmp_path, {"proc/self/cgroup": "0::/a\0b\n", "proc/self/mountinfo": V2_MOUNT})
    (root / "proc/meminfo").write_bytes(b"\xff\xfe: \x80 kB\n" + MEMINFO.encode())
    found = memory.detect(root)
    assert (found.total, found.available) == (32 * GIB, 16 * GIB)


def test_hybrid_mounts_read_both_versions(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/one\n0::/two\n",
        "proc/self/mountinfo": V1_MEMORY.format(root="/", point="/sys/fs/cgroup/memory")
        + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/memory/one/memory.limit_in_bytes": str(4 * GIB),
        "sys/fs/cgroup/unified/two/cgroup.procs": "1\n",
    }
    assert memory.detect(build(tmp_path, files)).total_source == "cgroup v1 memory.limit_in_bytes of /one"


def test_a_mount_point_with_a_space(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "30 23 0:26 / /my\\040groups rw - cgroup2 none rw\n",
        "my groups/memory.max": str(GIB),
    }
    assert memory.detect(build(tmp_path, files)).total == GIB


@pytest.mark.parametrize("garbage", ["", "lots", "-1", "-1073741824", "1e9", "9" * 30, "0x10", "max", "1 2 3"])
def test_a_limit_that_is_no_number_is_no_limit(tmp_path: Path, garbage: str) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/memory.max": garbage,
        "sys/fs/cgroup/memory.current": garbage,
    }
    found = memory.detect(build(tmp_path, files))
    assert (found.total, found.available) == (32 * GIB, 16 * GIB)


def test_nothing_outside_the_root_is_read(tmp_path: Path) -> None:
    root = tmp_path / "machine"
    files = {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2_MOUNT.replace("/sys/fs/cgroup", "/../outside")}
    build(tmp_path / "outside", {"memory.max": str(GIB)})
    assert memory.detect(build(root, files)).total == 32 * GIB


def test_unknown_memory_says_so_and_what_to_do(tmp_path: Path) -> None:
    found = memory.detect(tmp_path)
    assert (found.total, found.available) == (1, 1)
    assert found.total_source.startswith("not known")
    assert "QLANGCHAIN_MEMORY" in found.total_source


def test_psutil_serves_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(total=8 * GIB, available=5 * GIB))
    monkeypatch.setitem(sys.modules, "psutil", stand_in)
    monkeypatch.setattr(memory, "_proc", lambda root: None)
    monkeypatch.setattr(cgroup, "memory_limits", lambda root: [])
    found = memory.detect(Path("/"))
    assert (found.total, found.available, found.total_source) == (8 * GIB, 5 * GIB, "psutil, total")
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert memory.detect(Path("/")).total == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the figures to compare with are in /proc")
def test_this_machine() -> None:
    found = hardware.detect(environ={"QLANGCHAIN_VRAM": "0"})
    psutil = pytest.importorskip("psutil")
    assert 1 <= found.memory_available <= found.memory_total <= psutil.virtual_memory().total
