"""GPUs: NVML played by a stand-in, AMD's files in invented machines, Apple by pretending."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qlangchain import hardware
from qlangchain.hardware import amd, cards, gpu, nvidia
from qlangchain.types import Gpu

GIB = 1 << 30


@dataclass
class Device:
    """One GPU (or slice) as the stand-in for NVML knows it; `broken` names the calls that fail."""

    name: str | bytes
    uuid: str | bytes
    total: int = 24 * GIB
    free: int = 20 * GIB
    slices: list[Device | None] | None = None
    broken: dict[str, Exception] = field(default_factory=dict)


class NVMLError(Exception):
    pass


def nvml(devices: list[Device], **failures: Exception) -> ModuleType:
    """A module with the names of nvidia-ml-py that are used; `failures` maps a name to what it raises."""
    module = ModuleType("pynvml")
    module.opened = 0  # type: ignore[attr-defined]

    def opening(step: int) -> None:
        module.opened += step  # type: ignore[attr-defined]

    def slice_at(device: Device, place: int) -> Device:
        found = (device.slices or [])[place]
        if found is None:
            raise NVMLError("Not Found")
        return found

    def mig_mode(device: Device) -> list[int]:
        if device.slices is None:
            raise NVMLError("Not Supported")
        return [1, 1]

    functions: dict[str, Callable[..., Any]] = {
        "nvmlInit": lambda: opening(1),
        "nvmlShutdown": lambda: opening(-1),
        "nvmlDeviceGetCount": lambda: len(devices),
        "nvmlDeviceGetHandleByIndex": lambda index: devices[index],
        "nvmlDeviceGetName": lambda device: device.name,
        "nvmlDeviceGetUUID": lambda device: device.uuid,
        "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(total=device.total, free=device.free, used=0),
        "nvmlDeviceGetMigMode": mig_mode,
        "nvmlDeviceGetMaxMigDeviceCount": lambda device: len(device.slices or []),
        "nvmlDeviceGetMigDeviceHandleByIndex": slice_at,
    }

    def guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if name in failures:
                raise failures[name]
            if arguments and name in getattr(arguments[0], "broken", {}):
                raise arguments[0].broken[name]
            return function(*arguments)

        return call

    for name, function in functions.items():
        setattr(module, name, guarded(name, function))
    return module


TWO = [
    Device("RTX A", "GPU-aaaa1111-0000", 24 * GIB, 20 * GIB),
    Device("RTX B", "GPU-bbbb2222-0000", 48 * GIB, 1 * GIB),
]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    return lambda module: monkeypatch.setitem(sys.modules, "pynvml", module)


def test_the_stand_in_has_only_names_of_the_real_library() -> None:
    real = pytest.importorskip("pynvml")
    assert [name for name in vars(nvml([])) if name.startswith("nvml") and not hasattr(real, name)] == []


def test_two_gpus(install: Callable[[object], None]) -> None:
    module = nvml(TWO)
    install(module)
    found, source = nvidia.detect({})
    assert found == [
        Gpu("RTX A", 24 * GIB, 20 * GIB, 0, "GPU-aaaa1111-0000"),
        Gpu("RTX B", 48 * GIB, 1 * GIB, 1, "GPU-bbbb2222-0000"),
    ]
    assert source == "NVML (2 found)"
    assert module.opened == 0  # every nvmlInit has its nvmlShutdown


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", ["RTX A"]),
        ("1", ["RTX B"]),
        ("1,0", ["RTX B", "RTX A"]),
        (" 1 , 0 ", ["RTX B", "RTX A"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("7", []),
        ("1,-1,0", ["RTX B"]),
        ("0,7,1", ["RTX A"]),
        ("0,0", []),
        ("GPU-bbbb2222-0000", ["RTX B"]),
        ("GPU-bbbb", ["RTX B"]),
        ("gpu-BBBB,GPU-aaaa", ["RTX B", "RTX A"]),
        ("GPU-", []),
        ("GPU-cccc", []),
        ("MIG-1234", []),
        ("1gpu", ["RTX B"]),
        ("9" * 5000, []),
        ("١", []),
    ],
)
def test_cuda_visible_devices(install: Callable[[object], None], value: str, expected: list[str]) -> None:
    install(nvml(TWO))
    found, source = nvidia.detect({"CUDA_VISIBLE_DEVICES": value})
    assert [card.name for card in found] == expected
    assert [card.index for card in found] == list(range(len(expected)))
    assert f"leaves {len(expected)} of 2" in source


def test_the_order_of_different_cards_is_told(install: Callable[[object], None]) -> None:
    install(nvml(TWO))
    assert "PCI order" in nvidia.detect({"CUDA_VISIBLE_DEVICES": "1"})[1]
    assert "PCI order" not in nvidia.detect({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})[1]
    assert "PCI order" not in nvidia.detect({"CUDA_VISIBLE_DEVICES": "GPU-aaaa"})[1]


def mig() -> list[Device]:
    slices = [None, Device("A100 MIG 1g", "MIG-1111", 5 * GIB, 5 * GIB), Device("A100 MIG 2g", "MIG-2222", 10 * GIB)]
    return [Device("T4", "GPU-t4"), Device("A100", "GPU-a100", 40 * GIB, 39 * GIB, slices=slices)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ["A100 MIG 1g"]),  # CUDA shows one slice, and then no whole GPU
        ("0", ["T4"]),
        ("1", ["A100 MIG 1g"]),
        ("MIG-2222", ["A100 MIG 2g"]),
        ("MIG-1111,MIG-2222", ["A100 MIG 1g"]),
        ("GPU-a100", ["A100 MIG 1g"]),
        ("GPU-t4", ["T4"]),
    ],
)
def test_mig_slices_stand_for_their_gpu(
    install: Callable[[object], None], value: str | None, expected: list[str]
) -> None:
    install(nvml(mig()))
    found, _ = nvidia.detect({} if value is None else {"CUDA_VISIBLE_DEVICES": value})
    assert [card.name for card in found] == expected


def test_mig_mode_without_slices_is_no_gpu(install: Callable[[object], None]) -> None:
    install(nvml([Device("A100", "GPU-a100", slices=[])]))
    assert nvidia.detect({})[0] == []


def test_bytes_from_older_bindings(install: Callable[[object], None]) -> None:
    install(nvml([Device(b"Tesla \xff T4", b"GPU-t4")]))
    found, _ = nvidia.detect({"CUDA_VISIBLE_DEVICES": "GPU-t4"})
    assert found[0].uuid == "GPU-t4"
    assert found[0].name.startswith("Tesla")


def test_a_lost_gpu_does_not_hide_the_others(install: Callable[[object], None]) -> None:
    lost = Device("RTX A", "GPU-a", broken={"nvmlDeviceGetMemoryInfo": NVMLError("GPU is lost")})
    install(nvml([lost, Device("RTX B", "GPU-b")]))
    found, source = nvidia.detect({"CUDA_VISIBLE_DEVICES": "1"})
    assert [card.name for card in found] == ["RTX B"]
    assert "GPU 0 left out: GPU is lost" in source


def test_name_and_uuid_may_fail(install: Callable[[object], None]) -> None:
    broken: dict[str, Exception] = {"nvmlDeviceGetName": NVMLError("x"), "nvmlDeviceGetUUID": NVMLError("x")}
    install(nvml([Device("RTX A", "GPU-a", broken=broken)]))
    assert nvidia.detect({})[0] == [Gpu("NVIDIA GPU", 24 * GIB, 20 * GIB)]


@pytest.mark.parametrize(("total", "free", "expected"), [(8, 9, (8, 8)), (8, -1, (8, 0)), (0, 0, None)])
def test_impossible_memory(
    install: Callable[[object], None], total: int, free: int, expected: tuple[int, int] | None
) -> None:
    install(nvml([Device("RTX A", "GPU-a", total, free)]))
    assert [(card.total_bytes, card.free_bytes) for card in nvidia.detect({})[0]] == ([expected] if expected else [])


@pytest.mark.parametrize("name", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlShutdown"])
@pytest.mark.parametrize("error", [NVMLError("Driver/library version mismatch"), OSError("no"), AttributeError("old")])
def test_driver_errors_become_sources(install: Callable[[object], None], name: str, error: Exception) -> None:
    module = nvml(TWO, **{name: error})
    install(module)
    found, source = nvidia.detect({})
    assert len(found) == (2 if name == "nvmlShutdown" else 0)
    assert name == "nvmlShutdown" or str(error) in source


def test_no_library(install: Callable[[object], None]) -> None:
    install(None)
    assert nvidia.detect({}) == ([], "no NVIDIA GPU known: pynvml cannot be imported (ModuleNotFoundError)")


def test_a_module_of_another_kind(install: Callable[[object], None]) -> None:
    install(ModuleType("pynvml"))
    assert nvidia.detect({})[0] == []


def amd_card(root: Path, number: int, vram: object, used: object = 0, **files: object) -> None:
    directory = root / f"sys/class/drm/card{number}/device"
    directory.mkdir(parents=True)
    for name, value in {"mem_info_vram_total": vram, "mem_info_vram_used": used, **files}.items():
        if value is not None:
            (directory / name).write_text(f"{value}\n")


def test_amd(tmp_path: Path) -> None:
    amd_card(tmp_path, 10, 16 * GIB, 2 * GIB, device="0x744c", unique_id="0xdeadbeef")
    amd_card(tmp_path, 2, 24 * GIB, GIB, product_name="Radeon PRO W7900")
    (tmp_path / "sys/class/drm/card2-DP-1/device").mkdir(parents=True)
    (tmp_path / "sys/class/drm/version").write_text("drm 1.1.0")
    found, source = amd.detect(tmp_path, {})
    assert found == [
        Gpu("Radeon PRO W7900", 24 * GIB, 23 * GIB, 0, "", "amd"),
        Gpu("AMD GPU 0x744c", 16 * GIB, 14 * GIB, 1, "GPU-deadbeef", "amd"),
    ]
    assert source == "mem_info_vram_total in /sys/class/drm (2 found)"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HIP_VISIBLE_DEVICES": "1"}, [3]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [3]),
        ({"HIP_VISIBLE_DEVICES": "2", "CUDA_VISIBLE_DEVICES": "1"}, [4]),
        ({"HIP_VISIBLE_DEVICES": ""}, []),
        ({"ROCR_VISIBLE_DEVICES": "2,0"}, [4, 2]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-c1,0", "HIP_VISIBLE_DEVICES": "0"}, [3]),
    ],
)
def test_amd_visible_devices(tmp_path: Path, environ: dict[str, str], expected: list[int]) -> None:
    for number in range(3):
        amd_card(tmp_path, number, (number + 2) * GIB, unique_id=f"0xc{number}")
    found, _ = amd.detect(tmp_path, environ)
    assert [card.total_bytes // GIB for card in found] == expected
    assert [card.index for card in found] == list(range(len(expected)))


def test_amd_cards_that_do_not_count(tmp_path: Path) -> None:
    amd_card(tmp_path, 0, 512 << 20)  # integrated
    amd_card(tmp_path, 1, "junk")
    amd_card(tmp_path, 2, None)  # another vendor's
    amd_card(tmp_path, 3, 8 * GIB, None)
    amd_card(tmp_path, 4, 8 * GIB, 9 * GIB)
    amd_card(tmp_path, 5, 8 * GIB)  # seen in /sys, and not given to this container
    (tmp_path / "sys/class/drm/card5/device/drm/renderD133").mkdir(parents=True)
    found, source = amd.detect(tmp_path, {})
    assert [card.free_bytes for card in found] == [8 * GIB, 0]
    assert "card0 left out: 512 MiB" in source
    assert "use of card3 is not known" in source
    assert "card5 left out: its device file" in source


def test_amd_device_file(tmp_path: Path) -> None:
    amd_card(tmp_path, 0, 8 * GIB)
    (tmp_path / "sys/class/drm/card0/device/drm/renderD128").mkdir(parents=True)
    (tmp_path / "dev/dri").mkdir(parents=True)
    (tmp_path / "dev/dri/renderD128").touch()
    amd_card(tmp_path, 1, 8 * GIB)
    (tmp_path / "sys/class/drm/card1/device/drm").mkdir()  # a driver without render nodes
    assert len(amd.detect(tmp_path, {})[0]) == 2


def test_apple(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Callable[[object], None]) -> None:
    install(None)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    found = hardware.detect(root=tmp_path, environ={"QLANGCHAIN_MEMORY": "10GB", "QLANGCHAIN_CORES": "8"})
    assert found.gpus == (Gpu("Apple GPU (unified memory)", 7 * 10**9, 7 * 10**9, 0, "", "apple", unified=True),)
    assert "estimate" in found.sources["gpus"]
    assert gpu.detect(tmp_path, {}, 10 * GIB, 2 * GIB)[0][0].free_bytes == 2 * GIB
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert gpu.detect(tmp_path, {}, GIB, GIB)[0] == ()


def test_vendors_add_up(tmp_path: Path, install: Callable[[object], None]) -> None:
    install(nvml(TWO[:1]))
    amd_card(tmp_path, 0, 8 * GIB)
    found, source = gpu.detect(tmp_path, {}, GIB, GIB)
    assert [(card.vendor, card.index) for card in found] == [("nvidia", 0), ("amd", 0)]
    assert source == "NVML (1 found); mem_info_vram_total in /sys/class/drm (1 found)"


def test_unset_leaves_all() -> None:
    both = [cards.Card(Gpu("a", 1, 1), 0), cards.Card(Gpu("b", 1, 1), 1)]
    assert cards.visible(None, both) == both
