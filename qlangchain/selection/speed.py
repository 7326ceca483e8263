"""How fast a model decodes and reads prompts, predicted from bytes, bandwidth and arithmetic; pure.

Decoding reads every weight that a token uses, and the KV cache up to the context's fill, once for each token: bytes
over bandwidth are its time (facts and figures in `speed.toml`). Predictions have a range, and what was measured on
the same machine corrects them, openly: see `correct`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from qlangchain.errors import InvalidInputError
from qlangchain.selection.formats import canonical, engine_of, table
from qlangchain.types import Gpu, Hardware

_FILE: Final = "speed.toml"
_MOST_RUNS: Final = 32  # the latest measurements of one kind that a correction is made of
_ABSURD: Final = 100.0  # a run this many times off was not what it says


@dataclass(frozen=True, slots=True)
class Load:
    """What one device reads for each token, in bytes.

    `device` is "cpu" or "gpu"; `bandwidth_bytes` is its memory's in bytes per second, None where not known. `cores`
    and `flags` are the CPU's and mean nothing for a GPU. `layers` are those that run there.
    """

    device: str
    weight_bytes: float
    kv_bytes: float = 0.0
    bandwidth_bytes: float | None = None
    cores: int = 1
    flags: frozenset[str] = frozenset()
    layers: int = 0


@dataclass(frozen=True, slots=True)
class Correction:
    """What runs on this machine did to a prediction: times `factor`, from so many runs of `basis`."""

    factor: float
    runs: int
    basis: str


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second: the expected figure, and the range that the truth should lie in."""

    low: float
    expected: float
    high: float
    reasons: tuple[str, ...] = ()
    correction: Correction | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run on one machine: tokens per second, beside what had been predicted before any correction.

    `machine` is what the caller calls the machine (`machine_of`), `device` "cpu", "gpu" or "hybrid", `artifact` the
    digest of what was served, `date` ISO 8601.
    """

    machine: str
    runtime: str
    device: str
    format: str
    artifact: str
    predicted: float
    measured: float
    date: str


def machine_of(hardware: Hardware) -> str:
    """Name a machine by what decides predictions for it: processor, cores used, bandwidth and GPUs.

    A machine whose bandwidth has been measured anew counts as another one: what was predicted before rests on the
    old figure, and would correct the new prediction wrongly.
    """
    gpus = "".join(f" + {gpu.name}" for gpu in hardware.gpus)
    bandwidth = f" at {hardware.bandwidth_bytes / 1e9:.3g} GB/s" if hardware.bandwidth_bytes else ""
    return f"{hardware.cpu} x {hardware.cores}{bandwidth}{gpus}"


def on_cpu(hardware: Hardware, weight_bytes: float, kv_bytes: float, layers: int, threads: int | None = None) -> Load:
    """Return the load of a model, or of a part of it, on the processor."""
    cores = min(threads or hardware.cores, hardware.cores)
    return Load("cpu", weight_bytes, kv_bytes, hardware.bandwidth_bytes, cores, hardware.flags, layers)


def on_gpu(gpu: Gpu, hardware: Hardware, weight_bytes: float, kv_bytes: float, layers: int) -> Load:
    """Return the load of a model, or of a part of it, on one GPU."""
    shared = hardware.bandwidth_bytes if gpu.unified else None
    return Load("gpu", weight_bytes, kv_bytes, gpu.bandwidth_bytes or shared, layers=layers)


def bytes_per_token(
    weight_bytes: float,
    *,
    embedding_bytes: float = 0,
    tied: bool = False,
    expert_bytes: float = 0,
    experts: int = 0,
    experts_used: int = 0,
) -> float:
    """Return the bytes of weights that are read for one token.

    Of the token embeddings one row is read, unless they serve as the output as well (`tied`). Of the experts'
    weights, `expert_bytes` in all, only the share of those that are used counts: a mixture's memory goes by its
    total, its speed by its active parameters.
    """
    read = weight_bytes - (0 if tied else embedding_bytes)
    if experts > 0:
        read -= expert_bytes * (1 - min(experts_used, experts) / experts)
    return max(0.0, read)


def decode(loads: Sequence[Load], *, format: str, runtime: str, method: str | None = None) -> Speed:
    """Predict the tokens per second of one request; the devices of a split model work one after the other.

    Raises:
        InvalidInputError: no bytes at all, or a negative number of them, of cores or of layers.

    """
    name = canonical(format, method)
    seconds, overhead, margin, reasons = 0.0, 0.0, 1.0, []
    for load in loads:
        if load.weight_bytes < 0 or load.kv_bytes < 0 or load.cores < 1 or load.layers < 0:
            raise InvalidInputError(f"{load} cannot be.", hint="Bytes and layers are 0 or more, cores 1 or more.")
        row = _row(runtime, load.device)
        bandwidth, said, known = _bandwidth(load)
        rate, limit = _rate(row, name, load, bandwidth)
        reading = load.weight_bytes / rate + load.kv_bytes / (row["kv"] * bandwidth)
        launches: Mapping[str, float] = row.get("launch_seconds", {"other": 0.0})
        launching = load.layers * launches.get(name, launches["other"])
        if launching > reading:
            limit = f"bound by {launching * 1e3:.3g} ms of launches"
        seconds += max(reading, launching) + load.layers * row["layer_seconds"]
        overhead = max(overhead, row["overhead_seconds"])
        kind = "measured_bandwidth" if known and not row["assumed"] else "assumed"
        margin = max(margin, table(_FILE)["margins"][kind], row.get("margin", 1.0))
        gigabytes = (load.weight_bytes + load.kv_bytes) / 1e9
        reasons.append(f"{load.device}: {gigabytes:.3g} GB per token at {rate / 1e9:.3g} GB/s, {limit} ({said})")
    seconds += overhead
    if not sum(load.weight_bytes for load in loads) or seconds <= 0:
        raise InvalidInputError("Nothing would be read for a token.", hint="Pass at least one load with its weights.")
    expected = 1 / seconds
    return Speed(expected / margin, expected, expected * margin, tuple(reasons))


def prefill(loads: Sequence[Load], parameters: float, *, gpus: Sequence[Gpu] = ()) -> Speed:
    """Predict coarsely how many prompt tokens a second are read by a model with so many active parameters.

    Each token takes two operations per parameter, shared between the devices as the weights are. `gpus` are the
    cards, in the order of the loads on GPUs.
    """
    data = table(_FILE)["prefill"]
    if parameters <= 0 or not loads:
        raise InvalidInputError(f"parameters={parameters} cannot be.", hint="It must be above zero, with a load.")
    total = sum(load.weight_bytes for load in loads) or 1.0
    cards, seconds, reasons = iter(gpus), 0.0, []
    for load in loads:
        if load.device == "gpu":
            capability = getattr(next(cards, None), "compute_capability", None) or (0, 0)
            per_byte = next(row for row in data["gpu"] if capability >= tuple(row["capability"]))
            flops = per_byte["flops_per_byte"] * data["gpu_share"] * _bandwidth(load)[0]
            reasons.append(f"gpu: {flops / 1e12:.3g} TFLOP/s, {per_byte['source']}")
        else:
            core = next(row for row in data["core"] if not row["flag"] or row["flag"] in load.flags)
            flops = core["flops"] * load.cores
            reasons.append(f"cpu: {flops / 1e9:.3g} GFLOP/s of {load.cores} cores, {core['flag'] or 'no vectors'}")
        seconds += 2 * parameters * (load.weight_bytes / total) / flops
    margin = data["margin"]
    return Speed(1 / seconds / margin, 1 / seconds, margin / seconds, tuple(reasons))


def throughput(one: Speed, ceiling: Speed, requests: int, *, kv_share: float = 0.0) -> Speed:
    """Predict the tokens per second of so many requests decoded together, all of them counted.

    The weights are read once for all, the KV cache (`kv_share` of one request's time) for each; arithmetic bounds
    the whole at what `prefill` predicts.
    """
    together = requests / (1 + max(0.0, min(1.0, kv_share)) * (requests - 1))
    parts = [min(max(a, b), a * together) for a, b in zip(_range(one), _range(ceiling), strict=True)]
    return replace(one, low=parts[0], expected=parts[1], high=parts[2])


def correct(
    prediction: Speed,
    measurements: Iterable[Measurement],
    *,
    machine: str,
    runtime: str,
    device: str,
    format: str,
    method: str | None = None,
    artifact: str = "",
) -> Speed:
    """Scale a prediction by what runs on this machine gave over what had been predicted for them.

    The nearest runs count: those of the same artifact, else of the same format, else of the same runtime and device;
    of these the median of the latest 32. The range shrinks to how far those runs lie apart, with a floor. Without
    any such run the prediction comes back as it is.
    """
    name = canonical(format, method)
    runs = [
        run
        for run in measurements
        if (run.machine, run.runtime, run.device) == (machine, runtime, device)
        and run.predicted > 0
        and 1 / _ABSURD <= run.measured / run.predicted <= _ABSURD
    ]
    same_format = [run for run in runs if canonical(run.format) == name]
    levels = (
        ([run for run in same_format if artifact and run.artifact == artifact], "the same artifact", 1.0),
        (same_format, f"{name} models", 1.0),
        (runs, f"{runtime} on the {device} with other formats", 1.5),
    )
    for found, basis, spread in levels:
        if found:
            ratios = [run.measured / run.predicted for run in found[-_MOST_RUNS:]]
            factor = statistics.median(ratios)
            least = float(table(_FILE)["margins"]["corrected_least"])
            margin = max(least, max(ratios) / factor, factor / min(ratios)) * spread
            # One run may have been a lucky one: it does not shrink the range beyond its square root.
            if len(ratios) < 3:
                margin = max(margin, (prediction.high / prediction.expected) ** 0.5)
            expected = prediction.expected * factor
            said = f"corrected by {factor:.2f}: {len(ratios)} run(s) of {basis} on this machine"
            return Speed(
                expected / margin,
                expected,
                expected * margin,
                (*prediction.reasons, said),
                Correction(factor, len(ratios), basis),
            )
    return prediction


def _row(runtime: str, device: str) -> Mapping[str, Any]:
    rows = table(_FILE)["runtime"]
    # A runtime of somebody's own is taken for llama.cpp, whose figures are the most cautious for its kind.
    exact = [row for row in rows if (row["name"], row["device"]) == (engine_of(runtime), device)]
    found = exact or [row for row in rows if (row["name"], row["device"]) == ("llamacpp", device)]
    if not found:
        raise InvalidInputError(f"device={device!r} is not known.", hint="Known: cpu, gpu.")
    return {**found[0], "assumed": found[0]["assumed"] or not exact}


def _bandwidth(load: Load) -> tuple[float, str, bool]:
    if load.bandwidth_bytes and load.bandwidth_bytes > 0:
        return load.bandwidth_bytes, f"of {load.bandwidth_bytes / 1e9:.3g} GB/s", True
    assumed = float(table(_FILE)["unknown_bandwidth"][load.device])
    return assumed, f"of {assumed / 1e9:.3g} GB/s, assumed, since it is not known", False


def _rate(row: Mapping[str, Any], name: str, load: Load, bandwidth: float) -> tuple[float, str]:
    """Return the bytes of weights read in a second, and what limits them."""
    formats: Mapping[str, float] = row["formats"]
    share = row["base"] * (formats.get(name, formats["other"]) if formats else 1.0)
    kernels = row.get("kernel_bytes")
    if not kernels:
        return share * bandwidth, f"{share:.0%} of the bandwidth"
    one = kernels.get(name, kernels["other"])
    if load.weight_bytes > row["cached_bytes"]:
        one *= row["from_memory"]
    if load.flags and not load.flags & set(row["without"]):
        one *= min(row["without"].values())
    if one * load.cores < share * bandwidth:
        return one * load.cores, f"which {load.cores} core{'s' * (load.cores > 1)} can unpack"
    return share * bandwidth, f"{share:.0%} of the bandwidth"


def _range(speed: Speed) -> tuple[float, float, float]:
    return speed.low, speed.expected, speed.high
