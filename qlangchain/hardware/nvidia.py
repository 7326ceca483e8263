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
            cards.extend(_slices(nvml, handle, ordinal) if _is_sliced(nvml, handle) else [_card(nvml, handle, ordinal)])
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
            found.append(_card(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place), ordinal, parent))
    return found


def _card(nvml: Any, handle: Any, ordinal: int, parent: str = "") -> Card:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    total = int(memory.total)
    if total <= 0:
        raise ValueError("it reports no memory")
    try:
        name = _text(nvml.nvmlDeviceGetName(handle))
    except Exception:
        name = ""
    free = min(total, max(0, int(memory.free)))
    return Card(Gpu(name or "NVIDIA GPU", total, free, ordinal, _uuid(nvml, handle)), ordinal, parent)


def _uuid(nvml: Any, handle: Any) -> str:
    try:
        return _text(nvml.nvmlDeviceGetUUID(handle))
    except Exception:
        return ""


def _text(value: object) -> str:
    """Return what NVML gave as text: bindings before version 11.5 answered in bytes."""
    return one_line(value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value), 120)
