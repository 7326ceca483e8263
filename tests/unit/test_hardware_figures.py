"""What decides speed: instruction sets, memory bandwidth of cores and cards, compute capability, room on the disk."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlangchain import hardware
from qlangchain.hardware import apple, bandwidth, cpu, disk, nvidia
from qlangchain.hardware.bandwidth import Bandwidth
from qlangchain.types import Gpu, Hardware

GIB = 1 << 30


def cpuinfo(root: Path, text: str) -> Path:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t: fpu sse4_2 avx avx2 fma f16c\n", {"sse4_2", "avx", "avx2", "fma", "f16c"}),
        ("flags\t: avx512f avx512_vnni avx512_vbmi amx_tile amx_int8\n",
         {"avx512f", "avx512_vnni", "avx512vbmi", "amx_tile", "amx_int8"}),
        ("flags\t: avx_vnni AVX2\n", {"avx_vnni", "avx2"}),
        ("Features\t: fp asimd asimddp asimdhp i8mm sve bf16\n", {"neon", "dotprod", "fp16", "i8mm", "sve", "bf16"}),
        ("flags\t: avx2x notavx2 avx\n", {"avx"}),
        ("flags\t: avx\n\nflags\t: avx2\n", {"avx"}),
        ("model name\t: x\n", set()),
        ("", set()),
    ],
)  # fmt: skip
def test_flags(tmp_path: Path, text: str, expected: set[str]) -> None:
    found, source = cpu.flags(cpuinfo(tmp_path, text))
    assert found == expected
    assert source.startswith("/proc/cpuinfo" if expected else "not known")


def test_flags_of_an_apple_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "read_text", lambda path, limit=0: "")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    said = b"hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 1\nhw.optional.arm.FEAT_SME: 0\njunk\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    assert cpu.flags(Path("/"))[0] == {"neon", "dotprod", "i8mm"}


def test_an_apple_gpu_with_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=b"iogpu.wired_limit_mb: 28672\n"))
    (card,), source = apple.detect(32 * GIB, 20 * GIB)
    assert (card.total_bytes, card.free_bytes, card.unified) == (28 * GIB, 20 * GIB, True)
    assert "iogpu.wired_limit_mb" in source
    assert apple.detect(16 * GIB, GIB)[0][0].total_bytes == 16 * GIB  # never more than there is


@pytest.mark.parametrize("fault", [FileNotFoundError(), PermissionError(), subprocess.TimeoutExpired("sysctl", 2)])
def test_no_sysctl(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(subprocess, "run", fail)
    assert apple.sysctl("hw.optional") == {}


def nvml(**answers: Any) -> Any:
    """An NVML that answers these calls and refuses the others."""

    def ask(name: str) -> Callable[..., Any]:
        def call(*_: Any) -> Any:
            if name not in answers:
                raise RuntimeError("Not Supported")
            return answers[name]

        return call

    class Stand:
        NVML_CLOCK_MEM = 2

        def __getattr__(self, name: str) -> Callable[..., Any]:
            return ask(name)

    return Stand()


def test_the_names_are_those_of_the_real_library() -> None:
    real = pytest.importorskip("pynvml")
    for name in ("nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetMemoryBusWidth", "nvmlDeviceGetCudaComputeCapability"):
        assert callable(getattr(real, name))
    assert isinstance(real.NVML_CLOCK_MEM, int)


MEMORY = SimpleNamespace(total=80 * GIB, free=79 * GIB)


@pytest.mark.parametrize(
    ("clock", "bits", "expected"),
    [(1593, 5120, 2039), (10501, 384, 1008), (2619, 5120, 3352), (5001, 256, 320)],  # A100, RTX 4090, H100, T4
)
def test_bandwidth_of_known_cards(clock: int, bits: int, expected: int) -> None:
    library = nvml(
        nvmlDeviceGetMemoryInfo=MEMORY, nvmlDeviceGetMaxClockInfo=clock, nvmlDeviceGetMemoryBusWidth=bits,
        nvmlDeviceGetCudaComputeCapability=(8, 0),
    )  # fmt: skip
    card = nvidia._card(library, "gpu", "gpu", 0).gpu
    assert card.bandwidth_bytes is not None
    assert card.bandwidth_bytes / 1e9 == pytest.approx(expected, rel=0.002)
    assert card.compute_capability == (8, 0)
    assert f"{clock} MHz x {bits} bits" in card.bandwidth_source


@pytest.mark.parametrize(("clock", "bits"), [(0, 384), (10501, 0), (-1, 384), (10**9, 10**9)])
def test_nonsense_of_a_driver_is_no_bandwidth(clock: int, bits: int) -> None:
    library = nvml(
        nvmlDeviceGetMemoryInfo=MEMORY, nvmlDeviceGetMaxClockInfo=clock, nvmlDeviceGetMemoryBusWidth=bits
    )  # fmt: skip
    card = nvidia._card(library, "gpu", "gpu", 0).gpu
    assert (card.bandwidth_bytes, card.compute_capability) == (None, None)


def test_a_slice_has_its_share_of_the_bandwidth() -> None:
    totals = {"slice": 10 * GIB, "board": 80 * GIB}
    library = SimpleNamespace(
        NVML_CLOCK_MEM=2,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=totals[handle], free=GIB),
        nvmlDeviceGetMaxClockInfo=lambda handle, kind: {"board": 1593}[handle],
        nvmlDeviceGetMemoryBusWidth=lambda handle: {"board": 5120}[handle],
    )
    card = nvidia._card(library, "slice", "board", 0, "GPU-parent").gpu
    assert card.bandwidth_bytes == pytest.approx(2039e9 / 8, rel=0.001)
    assert "share" in card.bandwidth_source


def test_values_survive_json() -> None:
    card = Gpu("a", 1, 1, compute_capability=(8, 9), bandwidth_bytes=5, bandwidth_source="s", unified=True)
    found = Hardware(2, 1, 1, (card,), "cpu", {}, frozenset({"avx2", "fma"}), 7, 9)
    data = json.loads(json.dumps(hardware.to_dict(found)))
    assert Hardware(**{**data, "gpus": tuple(Gpu(**entry) for entry in data["gpus"])}) == found


# --- bandwidth ---


@given(
    st.lists(st.tuples(st.floats(0.001, 0.1), st.integers(1, 1 << 24)), min_size=1, max_size=30),
    st.floats(0.0005, 0.05),
)
def test_the_best_stretch_lies_between_the_mean_and_the_fastest(steps: list[tuple[float, int]], stretch: float) -> None:
    now, done = 0.0, []
    for seconds, size in steps:
        now += seconds
        done.append((now, size))
    best = bandwidth.best_rate(done, 0.0, stretch)
    mean = sum(size for _, size in steps) / now
    assert best <= max(size / seconds for seconds, size in steps) * 1.001
    assert best > 0
    assert best >= mean * 0.999


def test_a_pause_does_not_count() -> None:
    quick = [(0.001 * n, 1000) for n in range(1, 21)]
    late = [(1.0 + moment, size) for moment, size in quick]
    assert bandwidth.best_rate([*quick, *late], 0.0, 0.01) == pytest.approx(1e6, rel=0.01)


def test_chunks_of_all_threads_add_up() -> None:
    both = [(0.001 * n, 1000) for n in range(1, 21) for _ in range(2)]
    assert bandwidth.best_rate(both, 0.0, 0.01) == pytest.approx(2e6, rel=0.15)


def test_it_is_measured_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)
    machine = Hardware(8 * GIB, 8 * GIB, 1, cpu="a processor")
    first = hardware.with_bandwidth(machine, tmp_path)
    assert first.bandwidth_bytes is not None
    assert 1e8 <= first.bandwidth_bytes <= 1e14
    assert first.sources["bandwidth_bytes"].startswith("measured with 1 thread on 20")
    monkeypatch.setattr(bandwidth, "measure", lambda *_: pytest.fail("measured again"))
    assert hardware.with_bandwidth(machine, tmp_path) == first
    assert hardware.with_bandwidth(first, tmp_path) == first
    monkeypatch.setattr(bandwidth, "measure", lambda *_: Bandwidth(10**10, 2, "2026-01-01"))
    assert hardware.with_bandwidth(replace(machine, cores=2), tmp_path).bandwidth_bytes == 10**10  # another machine
    assert hardware.with_bandwidth(machine, tmp_path) == first


def test_a_busy_machine_is_measured_again_when_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, load = Hardware(8 * GIB, 8 * GIB, 2), [9.0]
    monkeypatch.setattr(os, "getloadavg", lambda: (load[0], 0.0, 0.0), raising=False)
    figures = iter([Bandwidth(4 * 10**9, 2, "2026-01-01", busy=True), Bandwidth(3 * 10**9, 2, "2026-01-02")])
    monkeypatch.setattr(bandwidth, "measure", lambda *_: next(figures))
    first = hardware.with_bandwidth(machine, tmp_path)
    assert first.bandwidth_bytes == 4 * 10**9
    assert "busy" in first.sources["bandwidth_bytes"]
    assert hardware.with_bandwidth(first, tmp_path) == first
    load[0] = 0.0
    again = hardware.with_bandwidth(first, tmp_path)
    assert again.bandwidth_bytes == 4 * 10**9  # the larger: the second may have been disturbed as well
    assert again.sources["bandwidth_bytes"] == "measured with 2 threads on 2026-01-02"


def test_detect_finds_what_was_measured_and_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "measure", lambda *_: pytest.fail("measured"))
    environ = {"QLANGCHAIN_HOME": str(tmp_path), "QLANGCHAIN_VRAM": "0"}
    found = hardware.detect(environ=environ)
    assert (found.bandwidth_bytes, found.sources["bandwidth_bytes"]) == (None, "not measured yet")
    bandwidth.remember(tmp_path, found.cpu, found.cores, Bandwidth(5 * 10**9, found.cores, "2026-11-22"))
    assert hardware.detect(environ=environ).bandwidth_bytes == 5 * 10**9
    assert hardware.detect(environ={**environ, "QLANGCHAIN_CORES": "77"}).bandwidth_bytes is None


GOOD = {"bytes_per_second": 10**10, "threads": 2, "date": "2026-11-22", "busy": False}


@pytest.mark.parametrize(
    "entry",
    [
        None, [], "x", {}, {**GOOD, "bytes_per_second": "fast"}, {**GOOD, "bytes_per_second": 1},
        {**GOOD, "bytes_per_second": 10**30}, {**GOOD, "bytes_per_second": True}, {**GOOD, "threads": None},
        {**GOOD, "date": 5},
    ],
)  # fmt: skip
def test_damaged_figures_are_not_believed(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "hardware/bandwidth.json"
    path.parent.mkdir()
    path.write_text(json.dumps({bandwidth._identity("cpu", 2): entry}))
    assert bandwidth.remembered(tmp_path, "cpu", 2)[0] is None
    path.write_text(json.dumps({bandwidth._identity("cpu", 2): GOOD}))
    assert bandwidth.remembered(tmp_path, "cpu", 2)[0] == Bandwidth(10**10, 2, "2026-11-22")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[1]", b"{" * 2_000_000])
def test_a_damaged_file_is_measured_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hardware/bandwidth.json"
    path.parent.mkdir()
    path.write_bytes(content)
    assert bandwidth.remembered(tmp_path, "cpu", 2) == (None, "not measured yet")
    bandwidth.remember(tmp_path, "cpu", 2, Bandwidth(10**10, 2, "2026-11-22"))
    assert bandwidth.remembered(tmp_path, "cpu", 2)[0] is not None
    assert [entry.name for entry in path.parent.iterdir()] == ["bandwidth.json"]


def test_many_machines_share_a_store_and_the_file_stays_small(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=bandwidth.remember, args=(tmp_path, f"cpu {n}", 1, Bandwidth(10**10, 1, "2026-11-22")))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(200):
        bandwidth.remember(tmp_path, f"cpu {n}", 1, Bandwidth(10**10, 1, "2026-11-22"))
    kept = json.loads((tmp_path / "hardware/bandwidth.json").read_text())
    assert len(kept) == 64
    assert bandwidth.remembered(tmp_path, "cpu 199", 1)[0] is not None
    assert bandwidth.remembered(tmp_path, "cpu 1", 1)[0] is None


@pytest.mark.parametrize("fault", ["no numpy", "no memory", "no store"])
def test_a_machine_that_cannot_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    machine, store = Hardware(GIB, GIB if fault == "no store" else 1000, 1), tmp_path
    if fault == "no numpy":
        monkeypatch.setitem(sys.modules, "numpy", None)
    if fault == "no store":
        store = tmp_path / "file"
        store.write_text("")
        monkeypatch.setattr(bandwidth, "measure", lambda *_: Bandwidth(10**10, 1, "2026-11-22"))
    found = hardware.with_bandwidth(machine, store)
    assert (found.bandwidth_bytes is None) == (fault != "no store")
    assert found.sources["bandwidth_bytes"].startswith("measured" if fault == "no store" else "not known")


def test_the_buffer_is_larger_than_the_caches(tmp_path: Path) -> None:
    assert bandwidth.buffer_size(tmp_path) == 64 << 20
    top = tmp_path / "sys/devices/system/cpu"
    for number, group in enumerate(["0-1", "0-1", "2-3", "2-3"]):
        for index, size in ((2, "1024K"), (3, "96M")):
            directory = top / f"cpu{number}/cache/index{index}"
            directory.mkdir(parents=True)
            (directory / "size").write_text(f"{size}\n")
            (directory / "shared_cpu_list").write_text(f"{group}\n")
    (top / "online").write_text("0-3\n")
    assert bandwidth.buffer_size(tmp_path) == 4 * 2 * (96 << 20)
    (top / "cpu0/cache/index3/size").write_text("99999999G")
    assert bandwidth.buffer_size(tmp_path) <= GIB


# --- disk ---


def test_the_disk_of_a_store_that_is_not_there_yet(tmp_path: Path) -> None:
    free, source = disk.free(tmp_path / "not" / "yet")
    assert free is not None
    assert free > 0
    assert "QLANGCHAIN_HOME" in source


def test_a_disk_that_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(disk.shutil, "disk_usage", refuse)
    assert disk.free(tmp_path) == (None, "not known: the disk cannot be asked (PermissionError)")
