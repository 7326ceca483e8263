"""Where a model is to run: what was asked for, what the machine has, what the engine can use. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from qlangchain.errors import HardwareUnavailableError, InvalidInputError
from qlangchain.types import EngineFacts, Hardware, Requirements, Target

MAX_THREADS = 1024
MAX_CONCURRENCY = 256
_LARGEST = 1 << 60  # bytes: no machine has an exbibyte
_CORES = 1 << 16


def check(wanted: Requirements) -> None:
    """Refuse numbers that cannot be, and arguments that contradict each other; raises InvalidInputError."""
    if wanted.threads is not None and not 1 <= wanted.threads <= MAX_THREADS:
        raise InvalidInputError(f"threads={wanted.threads} cannot be.", hint=f"Pass 1 to {MAX_THREADS}, or None.")
    if wanted.concurrency is not None and not 1 <= wanted.concurrency <= MAX_CONCURRENCY:
        raise InvalidInputError(f"concurrency={wanted.concurrency} cannot be.", hint=f"Pass 1 to {MAX_CONCURRENCY}.")
    asked_target(wanted)


def check_hardware(hardware: Hardware) -> None:
    """Refuse a machine that cannot be: negative or absurd sizes, more free than there is, no cores.

    Raises InvalidInputError.
    """
    figures: list[tuple[str, int | None]] = [
        ("memory_total", hardware.memory_total),
        ("memory_available", hardware.memory_available),
        ("bandwidth_bytes", hardware.bandwidth_bytes),
        ("disk_free", hardware.disk_free),
    ]
    for gpu in hardware.gpus:
        figures += [(f"{gpu.name}: total_bytes", gpu.total_bytes), (f"{gpu.name}: free_bytes", gpu.free_bytes)]
        figures.append((f"{gpu.name}: bandwidth_bytes", gpu.bandwidth_bytes))
    for name, value in figures:
        if value is not None and not _is_size(value):
            raise InvalidInputError(
                f"{name}={value!r} cannot be.", hint="Sizes are in bytes: 0 or more, and below 1 EiB."
            )
    shares = [("memory_available", hardware.memory_available, "memory_total", hardware.memory_total)]
    shares += [(f"{gpu.name}: free_bytes", gpu.free_bytes, "total_bytes", gpu.total_bytes) for gpu in hardware.gpus]
    for part, free, whole, total in shares:
        if free > total:
            raise InvalidInputError(f"{part}={free:,} is more than {whole}={total:,}.", hint="Both are in bytes.")
    if not _is_size(hardware.cores) or not 1 <= hardware.cores <= _CORES:
        raise InvalidInputError(f"cores={hardware.cores!r} cannot be.", hint=f"Pass 1 to {_CORES}.")


def _is_size(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LARGEST


def asked_target(wanted: Requirements) -> Target:
    """Return what hardware= and gpu_layers= say together."""
    layers, target = wanted.gpu_layers, wanted.hardware
    if layers is None:
        return target
    if layers < -1:
        raise InvalidInputError(f"gpu_layers={layers} cannot be.", hint="Pass 0 or more, or -1 for all layers.")
    if target is Target.AUTO:
        return Target.HYBRID if layers else Target.CPU
    if (target is Target.CPU) == bool(layers):
        raise InvalidInputError(
            f"hardware={target.value!r} and gpu_layers={layers} contradict each other.", hint="Leave out one of them."
        )
    return target


def target_of(
    wanted: Requirements, hardware: Hardware, engines: Sequence[EngineFacts], reasons: list[str], notices: list[str]
) -> Target:
    """Return where to run, and say why in `reasons` or `notices`.

    Raises:
        HardwareUnavailableError: a GPU is asked for, and the machine or every engine has none.

    """
    asked = asked_target(wanted)
    if asked is Target.CPU:
        return Target.CPU
    gpus = ", ".join(gpu.name for gpu in hardware.gpus)
    able = [engine for engine in engines if engine.gpu]
    hint = next((engine.gpu_hint for engine in engines if engine.gpu_hint), "")
    versions = ", ".join(engine.version for engine in engines) or "none"
    if asked is Target.GPU:
        if not hardware.has_gpu:
            raise HardwareUnavailableError(
                "hardware='gpu' was asked for, and this machine has no GPU that can be used.",
                hint=f"Pass hardware='cpu' or 'hybrid'; for an NVIDIA card install its driver. {hint}".strip(),
            )
        if not able:
            raise HardwareUnavailableError(
                f"hardware='gpu' was asked for, and the engine ({versions}) was built without GPU support.",
                hint=hint or "Pass hardware='cpu', or another runtime=.",
            )
        return Target.GPU
    if asked is Target.HYBRID:
        if not hardware.has_gpu:
            notices.append("hardware='hybrid' runs on the CPU alone: this machine has no GPU that can be used.")
        elif not able:
            notices.append(
                f"hardware='hybrid' runs on the CPU alone: the engine ({versions}) has no support for {gpus}. {hint}"
            )
        return Target.HYBRID
    if hardware.has_gpu and able:
        reasons.append(f"There is a GPU ({gpus}), and {able[0].version} can use it.")
        return Target.HYBRID
    if hardware.has_gpu:
        notices.append(f"The GPU ({gpus}) is not used: the engine was built without GPU support. {hint}")
    else:
        reasons.append("There is no GPU.")
    return Target.CPU
