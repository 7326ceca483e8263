"""Apple chips: one memory for CPU and GPU, and what sysctl tells of them."""

from __future__ import annotations

import platform
import subprocess
import sys

from qlangchain.hardware.files import whole_number
from qlangchain.types import Gpu

# Metal's recommendedMaxWorkingSetSize is 65 to 75 % of the memory, depending on the machine.
_SHARE = 0.70
# The share that the user gives to the GPU, in MiB; 0 leaves it to the system.
_LIMIT = "iogpu.wired_limit_mb"
_SYSCTL = "/usr/sbin/sysctl"
_SECONDS = 2.0


def detect(memory_total: int, memory_available: int) -> tuple[list[Gpu], str]:
    """Return the GPU of an Apple chip, which shares the machine's memory: it counts once, not twice.

    Both arguments are the machine's, in bytes.
    """
    if (sys.platform, platform.machine()) != ("darwin", "arm64"):
        return [], ""
    limit = whole_number(sysctl(_LIMIT).get(_LIMIT, ""))
    if limit:
        total, source = min(memory_total, limit << 20), f"{_LIMIT} of sysctl"
    else:
        total, source = int(memory_total * _SHARE), f"an estimate: {_SHARE:.0%} of the unified memory"
    card = Gpu(
        name="Apple GPU (unified memory)",
        total_bytes=total,
        free_bytes=min(total, memory_available),
        vendor="apple",
        unified=True,
    )
    return [card], f"{source}, which the CPU shares"


def features() -> set[str]:
    """Return the instruction sets that macOS reports, in lower case and without their prefix (`feat_i8mm`)."""
    if platform.system() != "Darwin":
        return set()
    found = sysctl("hw.optional")
    return {name.rpartition(".")[2].lower() for name, value in found.items() if value == "1"}


def sysctl(name: str) -> dict[str, str]:
    """Return the variable of that name, or those below it, as text; nothing where there is no such."""
    try:
        done = subprocess.run([_SYSCTL, name], capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    pairs = (line.partition(":") for line in done.stdout.decode("utf-8", "replace").splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}
