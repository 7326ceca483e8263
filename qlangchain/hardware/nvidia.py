"""NVIDIA GPUs through NVML, the driver's own library (nvidia-ml-py, imported as pynvml; torch is not needed)."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from typing import Any

from qlangchain.hardware.cards import Card, narrowed, numbered, visible
from qlangchain.hardware.files import one_line
from qlangchain.types import Gpu

_VISIBLE = "CUDA_VISIBLE_DEVICES"
# One GPU is cut into seven slices at most; the bound is for a driver that answers nonsense.
_MOST_SLICES = 64
_MOST_GPUS = 1024
# No memory is faster: a driver that answers nonsense is not believed. (The B300 has 8e12.)
_FASTEST = 1e14


def detect(environ: Mapping[str, str]) -> tuple[list[Gpu], str]:
    """Return the GPUs that CUDA would show to a process with this environment, and the source or the reason."""
    try:
        nvml = importlib.import_module("pynvml")
    except Exception as error:  # not installed, or broken: either way there is nothing to ask
        return [], f"no NVIDIA GPU known: pynvml cannot be imported ({type(error).__name__})"
    try:
        nvml.nvmlInit()
    except Exception as error:  # NVMLError: no library, no driver, versions that do not match
        return [], f"no NVIDIA GPU: NVML says {_text(error)!r}"
    try:
        return _ask(nvml, environ)
    except Exception as error:
        return [], f"no NVIDIA GPU known: NVML failed ({_text(error)})"
    finally:
        with contextlib.suppress(Exception):  # nothing depends on it: the process's end would do the same
            nvml.nvmlShutdown()


def _ask(nvml: Any, environ: Mapping[str, str]) -> tuple[list[Gpu], str]:
    cards: list[Card] = []
    notes: list[str] = []
    for ordinal in range(min(int(nvml.nvmlDeviceGetCount()), _MOST_GPUS)):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(ordinal)
            if _is_sliced(nvml, handle):
                cards.extend(_slices(nvml, handle, ordinal))
            else:
                cards.append(_card(nvml, handle, handle, ordinal))
        except Exception as error:
            # A lost card must not hide the others. Boards that share the CPU's memory end here too: they
            # answer "Not Supported", and QLANGCHAIN_VRAM is the way to tell what may be used of it.
            notes.append(f"GPU {ordinal} left out: {_text(error)}")
    setting = environ.get(_VISIBLE)
    left = visible(setting, cards)
    if any(card.parent_uuid for card in left):
        # CUDA shows a single slice to a process, and then no whole GPU (MIG user guide, device enumeration).
        left = [card for card in left if card.parent_uuid][:1]
        notes.append("MIG: a process sees one slice")
    names = {card.gpu.name for card in cards}
    if setting and setting[:1].isdigit() and len(names) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        notes.append("numbered in PCI order, which CUDA follows only with CUDA_DEVICE_ORDER=PCI_BUS_ID")
    source = f"NVML ({len(cards)} found){narrowed(_VISIBLE, setting, len(cards), len(left))}"
    return numbered(left), "; ".join([source, *notes])


def _is_sliced(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except Exception:  # most GPUs cannot be sliced, and say so by an error
        return False


def _slices(nvml: Any, handle: Any, ordinal: int) -> list[Card]:
    """Return the slices in place of their GPU, which CUDA does not use as a whole while MIG is on."""
    parent = _uuid(nvml, handle) or f"GPU {ordinal}"
    found = []
    for place in range(min(int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)), _MOST_SLICES)):
        with contextlib.suppress(Exception):  # a place with no slice in it answers "Not Found"
            slice = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            found.append(_card(nvml, slice, handle, ordinal, parent))
    return found


def _card(nvml: Any, handle: Any, board: Any, ordinal: int, parent: str = "") -> Card:
    """Describe one GPU or slice; `board` is the handle of the whole GPU, the slice's own where it is one."""
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    total = int(memory.total)
    if total <= 0:
        raise ValueError("it reports no memory")
    try:
        name = _text(nvml.nvmlDeviceGetName(handle))
    except Exception:
        name = ""
    free = min(total, max(0, int(memory.free)))
    bandwidth, source = _bandwidth(nvml, board)
    if parent and bandwidth:
        # A slice has its share of the memory's channels (MIG user guide, memory slices).
        bandwidth = int(bandwidth * min(1.0, total / max(total, int(nvml.nvmlDeviceGetMemoryInfo(board).total))))
        source += ", the slice's share"
    gpu = Gpu(
        name=name or "NVIDIA GPU",
        total_bytes=total,
        free_bytes=free,
        index=ordinal,
        uuid=_uuid(nvml, handle),
        compute_capability=_capability(nvml, board),
        bandwidth_bytes=bandwidth,
        bandwidth_source=source,
    )
    return Card(gpu, ordinal, parent)


def _capability(nvml: Any, handle: Any) -> tuple[int, int] | None:
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        return int(major), int(minor)
    except Exception:  # a driver from before it could be asked
        return None


def _bandwidth(nvml: Any, handle: Any) -> tuple[int | None, str]:
    """Return the memory's bandwidth in bytes per second, and what it was computed from.

    Two transfers a clock on each wire of the bus: 2 x 1,593 MHz x 5,120 bits = 2,039 GB/s for the A100 with
    80 GB, 2 x 10,501 MHz x 384 bits = 1,008 GB/s for the RTX 4090, as in NVIDIA's data sheets.
    """
    try:
        megahertz = int(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM))
        bits = int(nvml.nvmlDeviceGetMemoryBusWidth(handle))
    except Exception:
        return None, ""
    bandwidth = 2 * megahertz * 1_000_000 * bits // 8
    if not 0 < bandwidth < _FASTEST:
        return None, ""
    return bandwidth, f"NVML, 2 x {megahertz} MHz x {bits} bits"


def _uuid(nvml: Any, handle: Any) -> str:
    try:
        return _text(nvml.nvmlDeviceGetUUID(handle))
    except Exception:
        return ""


def _text(value: object) -> str:
    """Return what NVML gave as text: bindings before version 11.5 answered in bytes."""
    return one_line(value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value), 120)
