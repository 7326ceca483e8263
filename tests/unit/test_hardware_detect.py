"""The whole of detect(): overrides, garbage, speed, and what it gives away."""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlangchain import hardware
from qlangchain.errors import InvalidInputError
from qlangchain.hardware import bandwidth, cards, cpu, disk, files, gpu, memory, parse_size
from qlangchain.types import Gpu, Hardware

FIELDS = {"memory_total", "memory_available", "cores", "gpus", "cpu", "flags", "bandwidth_bytes", "disk_free"}
OVERRIDES = {"QLANGCHAIN_MEMORY": "16GiB", "QLANGCHAIN_CORES": "8", "QLANGCHAIN_VRAM": "24GiB"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 << 30),
        ("24 GiB", 24 << 30),
        (" 24gib ", 24 << 30),
        ("24Gi", 24 << 30),
        ("24G", 24 << 30),
        ("24GB", 24 * 10**9),
        ("512MB", 512 * 10**6),
        ("512 MiB", 512 << 20),
        ("1.5TiB", 3 << 39),
        ("0.1KiB", 102),
        ("1k", 1024),
        ("1kB", 1000),
        ("0", 0),
        ("1048576", 1 << 20),
        ("1048576 B", 1 << 20),
        ("1P", 1 << 50),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "GiB", "lots", "-1", "-16GiB", "+16GiB", "16XB", "16kbb", "16iB", "1e9", "0x10", "16,5GiB",
        "16..5G", "16 G iB", "1_000", "nan", "inf", "0.5", "16GiB16GiB", "1EiB", "1024PiB", "9" * 20, "9" * 5000,
        "١٦GiB", "16\u212a", "16GiB\x00", None, 16, b"16GiB",
    ],
)  # fmt: skip
def test_senseless_sizes(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_size(text)
    assert caught.value.hint
    assert len(str(caught.value)) < 200


@given(
    st.integers(0, (1 << 20) - 1), st.sampled_from(["", "B", "K", "KiB", "MiB", "GiB", "TiB", "kB", "MB", "GB", "TB"])
)
def test_a_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * parse_size(f"1{unit}")


@given(st.text())
def test_any_text_is_a_size_or_an_invalid_input(text: str) -> None:
    with contextlib.suppress(InvalidInputError):
        assert 0 <= parse_size(text) < 1 << 60


def test_overrides_replace_the_machine(tmp_path: Path) -> None:
    found = hardware.detect(root=tmp_path, environ=OVERRIDES)
    assert (found.memory_total, found.memory_available, found.cores) == (16 << 30, 16 << 30, 8)
    assert found.gpus == (Gpu("imagined GPU", 24 << 30, 24 << 30),)
    assert found.sources["memory_total"] == found.sources["memory_available"] == "QLANGCHAIN_MEMORY"
    assert found.sources["cores"] == "QLANGCHAIN_CORES"
    assert found.sources["gpus"] == "QLANGCHAIN_VRAM"


def test_the_bandwidth_can_be_given(tmp_path: Path) -> None:
    for text in ("50GB/s", "50GB", "50 GB /s".replace(" /", "/")):
        found = hardware.detect(root=tmp_path, environ={"QLANGCHAIN_BANDWIDTH": text})
        assert (found.bandwidth_bytes, found.sources["bandwidth_bytes"]) == (50 * 10**9, "QLANGCHAIN_BANDWIDTH")
    assert hardware.with_bandwidth(found, tmp_path) == found
    assert not list(tmp_path.rglob("*.json"))


def test_a_setting_that_makes_no_sense_costs_its_own_figures(tmp_path: Path) -> None:
    found = hardware.detect(environ={"QLANGCHAIN_KEEP_ALIVE": "soon", "QLANGCHAIN_VRAM": "0"})
    assert found.memory_total > 1
    assert found.disk_free is None


def test_no_vram_is_no_gpu_and_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "detect", lambda *args: pytest.fail("asked"))
    found = hardware.detect(environ={"QLANGCHAIN_VRAM": "0"})
    assert not found.has_gpu


def test_empty_overrides_count_as_unset(tmp_path: Path) -> None:
    empty = dict.fromkeys(OVERRIDES, " ")
    assert hardware.detect(root=tmp_path, environ=empty) == hardware.detect(root=tmp_path, environ={})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("QLANGCHAIN_MEMORY", "lots"),
        ("QLANGCHAIN_MEMORY", "0"),
        ("QLANGCHAIN_MEMORY", "16"),
        ("QLANGCHAIN_MEMORY", "-16GiB"),
        ("QLANGCHAIN_MEMORY", "9999PiB"),
        ("QLANGCHAIN_VRAM", "24"),
        ("QLANGCHAIN_VRAM", "none"),
        ("QLANGCHAIN_VRAM", "-1"),
        ("QLANGCHAIN_CORES", "0"),
        ("QLANGCHAIN_CORES", "-2"),
        ("QLANGCHAIN_CORES", "2.5"),
        ("QLANGCHAIN_CORES", "many"),
        ("QLANGCHAIN_CORES", "100000"),
        ("QLANGCHAIN_CORES", "٨"),
        ("QLANGCHAIN_BANDWIDTH", "fast"),
        ("QLANGCHAIN_BANDWIDTH", "0"),
        ("QLANGCHAIN_BANDWIDTH", "50"),
        ("QLANGCHAIN_BANDWIDTH", "50GB/h"),
    ],
)
def test_senseless_overrides_name_the_variable(variable: str, value: str) -> None:
    with pytest.raises(InvalidInputError, match=variable) as caught:
        hardware.detect(environ={variable: value})
    assert caught.value.hint


def test_a_failing_detector_costs_its_own_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("surprise\x1b")

    steps = ((memory, "detect"), (cpu, "cores"), (cpu, "describe"), (cpu, "flags"), (gpu, "detect"))
    for module, name in (*steps, (bandwidth, "remembered"), (disk, "free")):
        monkeypatch.setattr(module, name, fail)
    found = hardware.detect(environ={"QLANGCHAIN_HOME": str(tmp_path)})
    assert (found.memory_total, found.memory_available, found.cores, found.gpus, found.cpu) == (1, 1, 1, (), "")
    assert (found.flags, found.bandwidth_bytes, found.disk_free) == (frozenset(), None, None)
    assert set(found.sources) == FIELDS
    assert all("RuntimeError: surprise" in source for source in found.sources.values())
    assert not any("\x1b" in source for source in found.sources.values())


PATHS = [
    "proc/meminfo",
    "proc/cpuinfo",
    "proc/self/status",
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
    "sys/devices/system/cpu/cpu1/topology/core_cpus_list",
    *(f"{group}/{name}" for group in ("cg", "cg/a") for name in ("memory.max", "memory.high", "memory.current")),
    *(f"cg/{name}" for name in ("memory.stat", "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")),
    *(f"cg/a/{name}" for name in ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "cpu.max")),
    *(f"sys/class/drm/card0/device/{name}" for name in ("mem_info_vram_total", "mem_info_vram_used", "unique_id")),
]
# Words that the readers look for, so that garbage gets past their first line.
WORDS = [
    "MemTotal:", "MemAvailable:", "kB", "inactive_file", "max", "-1", "0", "1", "4096", "1073741824", "9" * 19,
    "9" * 40, "processor\t:", "core id\t:", "physical id\t:", "model name\t:", "flags\t:", "avx2",
    "Cpus_allowed_list:\t", "0-3", "0-99999", "3-1", ",", "0::/a", "0::/../b", "4:memory,cpu:/a",
    "4:memory:/" + "x" * 300, "4:memory:/\x00",
    "30 23 0:26 / /cg rw - cgroup2 cgroup2 rw", "31 23 0:27 / /cg rw - cgroup cgroup rw,memory,cpu",
    "31 23 0:27 /.. /cg\\000x rw - cgroup cgroup rw,memory", " - cgroup2", "\\777", "\n",
    "\n\n", " ", "\t", ":", "/", "é", "\u2028",
]  # fmt: skip
CONTENT = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from(WORDS), max_size=14).map(lambda words: "".join(words).encode()),
    st.lists(st.sampled_from(WORDS), max_size=14).map(lambda words: " ".join(words).encode()),
    st.lists(st.sampled_from(WORDS), max_size=14).map(lambda words: "\n".join(words).encode()),
)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(PATHS), CONTENT | st.none(), min_size=1))
def test_garbage_never_raises(contents: dict[str, bytes | None]) -> None:
    """Any bytes in any of the files (or a directory in a file's place) give figures that can be planned with."""
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(sys.modules, {"pynvml": None}):
        root = Path(name)
        for path, content in contents.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                target.mkdir(exist_ok=True)
            else:
                target.write_bytes(content)
        found = hardware.detect(root=root, environ={})
    assert 1 <= found.memory_available <= found.memory_total
    assert found.cores in range(1, files.MAX_CPUS + 1)
    assert all(card.total_bytes >= 1 and 0 <= card.free_bytes <= card.total_bytes for card in found.gpus)
    assert found.cpu.isprintable()
    assert set(found.sources) == FIELDS
    assert not any("the detector failed" in source for source in found.sources.values())
    json.dumps(hardware.to_dict(found))


@given(st.text(alphabet="01 2,-GPUMIGabc/x", max_size=20) | st.text())
def test_visible_devices_never_invents_a_card(value: str) -> None:
    all_cards = [
        cards.Card(Gpu("a", 1, 1, uuid="GPU-a"), 0),
        cards.Card(Gpu("b", 1, 1, uuid="MIG-a"), 1, "GPU-b"),
        cards.Card(Gpu("c", 1, 1, uuid=""), 2),
    ]
    left = cards.visible(value, all_cards)
    assert len(set(left)) == len(left)
    assert set(left) <= set(all_cards)


def test_to_dict_is_ready_for_json(tmp_path: Path) -> None:
    found = hardware.detect(root=tmp_path, environ=OVERRIDES)
    data = json.loads(json.dumps(hardware.to_dict(found)))
    assert data["memory_total"] == 16 << 30
    assert data["gpus"][0]["free_bytes"] == 24 << 30
    assert set(data["sources"]) == FIELDS
    rebuilt = Hardware(**{**data, "gpus": tuple(Gpu(**card) for card in data["gpus"])})
    assert rebuilt == found


def test_hardware_can_be_pickled(tmp_path: Path) -> None:
    found = hardware.detect(root=tmp_path, environ=OVERRIDES)
    assert pickle.loads(pickle.dumps(found)) == found


def test_detection_is_fast() -> None:
    hardware.detect(environ={"QLANGCHAIN_VRAM": "0"})
    best = min(_seconds() for _ in range(5))
    assert best < 0.05


def _seconds() -> float:
    start = time.perf_counter()
    hardware.detect(environ={"QLANGCHAIN_VRAM": "0"})
    return time.perf_counter() - start


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import qlangchain.hardware\n"
        "heavy = ('psutil', 'pynvml', 'ctypes', 'torch', 'numpy', 'langchain_core')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    home = str(Path(hardware.__file__).parents[2])
    # -S keeps site hooks (coverage, editable installs) from importing things on their own account.
    command = [sys.executable, "-S", "-c", program, home]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"
