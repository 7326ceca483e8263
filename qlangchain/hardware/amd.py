"""AMD GPUs through the files of the amdgpu driver, which need neither ROCm nor a permission."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from qlangchain.hardware.cards import Card, narrowed, numbered, visible
from qlangchain.hardware.files import one_line, read_number, read_text
from qlangchain.types import Gpu

# An integrated GPU sets a few hundred MiB of the machine's memory aside for the screen; that is no place
# for a model. (Boards that set aside many GiB are made for models, and count.)
_SMALLEST = 1 << 30


def detect(root: Path, environ: Mapping[str, str]) -> tuple[list[Gpu], str]:
    """Return the GPUs that ROCm would show to a process with this environment, and the source."""
    cards: list[Card] = []
    notes: list[str] = []
    for directory in _directories(root):
        device = directory / "device"
        total = read_number(device / "mem_info_vram_total")
        if not total:
            continue  # another vendor's, or a screen without a GPU
        if total < _SMALLEST:
            notes.append(f"{directory.name} left out: {total >> 20} MiB belong to an integrated GPU")
        elif not _is_reachable(root, device):
            # /sys shows a container the host's cards, whether or not it was given their device files.
            notes.append(f"{directory.name} left out: its device file is not in /dev/dri")
        else:
            used = read_number(device / "mem_info_vram_used")
            if used is None:
                notes.append(f"the use of {directory.name} is not known and counts as 0")
            cards.append(Card(_gpu(device, total, used or 0), ordinal=len(cards)))
    if not cards:
        return [], "; ".join(notes)
    source = f"mem_info_vram_total in /sys/class/drm ({len(cards)} found)"
    # ROCr hides first and HIP counts what is left; HIP reads CUDA's variable where its own is not set.
    hip = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in environ else "CUDA_VISIBLE_DEVICES"
    for variable in ("ROCR_VISIBLE_DEVICES", hip):
        left = visible(environ.get(variable), cards)
        source += narrowed(variable, environ.get(variable), len(cards), len(left))
        cards = [dataclasses.replace(card, ordinal=place) for place, card in enumerate(left)]
    return numbered(cards), "; ".join([source, *notes])


def _directories(root: Path) -> list[Path]:
    # `card0` is a card, `card0-DP-1` is one of its sockets.
    try:
        entries = [entry for entry in (root / "sys/class/drm").iterdir() if re.fullmatch(r"card[0-9]{1,6}", entry.name)]
    except OSError:
        return []
    return sorted(entries, key=lambda entry: int(entry.name[4:]))


def _is_reachable(root: Path, device: Path) -> bool:
    try:
        nodes = [entry.name for entry in (device / "drm").iterdir() if entry.name.startswith("renderD")]
        return not nodes or any((root / "dev/dri" / node).exists() for node in nodes)
    except OSError:
        return True  # it cannot be told, and the engine will


def _gpu(device: Path, total: int, used: int) -> Gpu:
    names = ("product_name", "device", "unique_id")
    product, number, unique = (one_line(read_text(device / name, 256)) for name in names)
    return Gpu(
        name=product or f"AMD GPU {number}".strip(),
        total_bytes=total,
        free_bytes=max(0, total - used),
        uuid=f"GPU-{unique.removeprefix('0x')}" if unique else "",
        vendor="amd",
    )
