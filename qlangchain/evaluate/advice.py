"""What helps where a quantized model disappoints: less accurate, no faster, still large. Pure: figures in, advice out.

Each piece of advice has the figure that it is given for and the gain to be expected, with its source. They come in
the order in which they are worth trying.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any, Final

from qlangchain.selection.formats import canonical
from qlangchain.selection.kv_cache import Load, kv_bytes
from qlangchain.selection.layers import Architecture
from qlangchain.selection.quality import GRADES, KL, Quality, grade_of, quality
from qlangchain.selection.weights import file_bytes, formats
from qlangchain.types import Method

SMALL_LOSS: Final = 2  # the grade from which accuracy is worth a remedy
_SLOW: Final = 0.67  # of the predicted speed; predictions are within one and a half times
_NO_FASTER: Final = 1.15  # times the unquantized model's speed
_CACHE_MATTERS: Final = 0.2  # of the weights


class Symptom(StrEnum):
    """What the advice is against."""

    ACCURACY = "accuracy dropped"
    SPEED = "no speed-up"
    MEMORY = "memory is high"


@dataclass(frozen=True, slots=True)
class Advice:
    """A remedy: what to do, the figure that speaks for it, and the gain to expect with its source."""

    symptom: Symptom
    remedy: str
    why: str
    gain: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What was measured and read of one served model; None where it is not known.

    `format` is canonical, `kl` in nats, `agreement` the share of equal answers. Speeds are in tokens per second:
    `speed` was measured, `predicted` had been expected, `whole_speed` is that of the unquantized model on the same
    engine. `resident` and `weights` are in bytes. `kernel_problem` is why this engine has no kernel for the format.
    """

    format: str
    method: Method
    architecture: Architecture
    parameters: float
    is_quantized: bool = True
    group_size: int | None = None
    imatrix: bool = False
    kl: float | None = None
    agreement: float | None = None
    runtime: str = "llamacpp"
    device: str = "cpu"
    speed: float | None = None
    predicted: float | None = None
    whole_speed: float | None = None
    threads: int = 1
    cores: int = 1
    has_gpu: bool = False
    gpu_layers: int = 0
    kernel_problem: str = ""
    resident: int | None = None
    weights: int = 0
    context: int = 2048
    slots: int = 1
    kv_type: str = "f16"

    @property
    def loss_grade(self) -> int:
        """The grade of what was measured, or of what is published for the format."""
        if self.kl is not None:
            return grade_of(self.kl, KL)
        return self.published.rank

    @property
    def published(self) -> Quality:
        """What the format costs models of this size by published figures."""
        return quality(self.format, self.parameters, imatrix=self.imatrix)


def advise(found: Findings) -> tuple[Advice, ...]:
    """All that would help, accuracy first, then speed, then memory; nothing where nothing is wrong."""
    return (*accuracy(found), *speed(found), *memory(found))


def accuracy(found: Findings) -> tuple[Advice, ...]:
    """Remedies against lost accuracy, the cheapest first: better calibration, finer groups, other method, more bits."""
    if not found.is_quantized or found.loss_grade < SMALL_LOSS:
        return ()
    if found.kl is not None:
        why = f"{found.format} diverges by {found.kl:.4f} nats per token: {GRADES[found.loss_grade]}"
    else:
        why = f"{found.format} is said to cost {found.published.grade}, which was not measured on this model"
    if found.agreement is not None:
        why += f"; {found.agreement:.0%} of the answers are those of full precision"
    return tuple(Advice(Symptom.ACCURACY, remedy, why, gain) for remedy, gain in _finer(found))


def _finer(found: Findings) -> Iterator[tuple[str, str]]:
    data = _data()
    if found.format in data["imatrix"]["formats"] and not found.imatrix:
        yield (
            f"Make {found.format} with an importance matrix from your own kind of text.",
            _expected(found, quality(found.format, found.parameters, imatrix=True)),
        )
    if found.method in (Method.GPTQ, Method.AWQ):
        yield (
            "Calibrate with more text of the kind that the model is for, 128 samples or more.",
            "not known before it is tried; it helps most where the text differs from what was calibrated on",
        )
        group = data["group_size"]
        if (found.group_size or 128) > group["smaller"] or found.group_size == -1:
            size = found.group_size if found.group_size not in (None, -1) else 128
            yield (
                f"Quantize in groups of {group['smaller']} instead of {size}.",
                f"about {1 - group['factor']:.0%} less divergence against groups of 128 ({group['source']}), and "
                "0.4 bits a weight more",
            )
    if other := data["other_method"].get(found.format):
        yield f"Try {other['format']}.", other["gain"]
    for name in _steps(found):
        better = quality(name, found.parameters)
        if better.loss is None or found.published.loss is None or better.rank < found.published.rank:
            yield f"Take {name}.", f"{_expected(found, better)}; {_growth(found, name)}"


def _steps(found: Findings) -> list[str]:
    """The next finer format of the family, and the finest."""
    ladder: list[str] = _data()["steps"].get(str(found.method), [])
    finer = ladder[ladder.index(found.format) + 1 :] if found.format in ladder else ladder[-1:]
    next_grade = [name for name in finer if quality(name, found.parameters).rank < found.published.rank]
    return list(dict.fromkeys([*next_grade[:1], *finer[-1:]]))


def _expected(found: Findings, better: Quality) -> str:
    now = found.published
    comparable = now.loss and better.loss is not None and (now.table, now.unit) == (better.table, better.unit)
    if not comparable:
        return f"{better.grade}, by published figures" if better.loss is not None else "no figure is published"
    assert now.loss and better.loss is not None
    factor = better.loss / now.loss
    if found.kl is not None:
        return f"about {found.kl * factor:.4f} nats instead of {found.kl:.4f} ({better.source})"
    return f"about {1 - factor:.0%} less loss ({better.source})"


def _growth(found: Findings, name: str) -> str:
    """How much larger or smaller the weights become."""
    if canonical(name) in formats() and found.weights:
        change = file_bytes(found.architecture, canonical(name)) / found.weights - 1
        return f"the weights become {abs(change):.0%} {'larger' if change > 0 else 'smaller'}"
    return "the weights become about twice as large"


def speed(found: Findings) -> tuple[Advice, ...]:
    """Remedies against slowness: is it quantized at all, by which kernel does it run, with which threads, where."""
    return tuple(Advice(Symptom.SPEED, *remedy) for remedy in _faster(found))


def _faster(found: Findings) -> Iterator[tuple[str, str, str]]:
    smaller = "Q4_K_M"
    if not found.is_quantized:
        factor = found.weights / file_bytes(found.architecture, smaller) if found.weights else 0
        yield (
            f"Quantize it, to {smaller} for instance.",
            f"the weights are {found.format}, not quantized",
            f"up to {factor:.1f} times as fast, since so much less is read for each token",
        )
    if found.kernel_problem:
        yield "Take another engine or format.", found.kernel_problem, "it runs at all, or on a kernel made for it"
    slow = _slow_kernel(found)
    if slow:
        instead = f"{slow['instead']} on llama.cpp" if slow["instead"] else "vLLM as the engine"
        yield f"Take {instead}.", slow["seen"], "a kernel that gains from fewer bits"
    if found.device == "cpu" and found.threads < found.cores:
        yield (
            f"Give the engine {found.cores} threads: QLANGCHAIN_THREADS, or threads=.",
            f"{found.threads} of {found.cores} cores are used",
            f"up to {found.cores / found.threads:.1f} times as fast, less where memory is the limit",
        )
    if found.device == "cpu" and found.threads > found.cores:
        yield (
            f"Give the engine {found.cores} threads at most.",
            f"{found.threads} threads share {found.cores} cores, and wait for each other",
            "several times as fast on a busy machine",
        )
    if found.has_gpu and found.gpu_layers == 0:
        yield (
            "Let the GPU take the layers that fit: hardware='hybrid', with an engine that was built for it.",
            "there is a GPU, and all layers are on the CPU",
            "as much faster as its memory is, for the layers that are on it",
        )
    predicted_low = found.predicted and found.speed and found.speed < _SLOW * found.predicted
    if predicted_low and found.predicted and found.speed:
        yield (
            "Look for what else uses the cores and the memory, and measure again.",
            f"{found.speed:.1f} tokens/s, where {found.predicted:.1f} were to be expected of this machine",
            f"up to {found.predicted / found.speed:.1f} times as fast",
        )
    no_gain = found.whole_speed and found.speed and found.speed < _NO_FASTER * found.whole_speed
    if no_gain and found.is_quantized and not slow and not predicted_low and found.whole_speed and found.speed:
        yield (
            "Take Q4_0 or Q4_K_M, whose kernels are the fastest; a model of this size may be bound by other work.",
            f"{found.speed:.1f} tokens/s, and {found.whole_speed:.1f} without quantization",
            "little for small models; with large ones, as much as less is read",
        )


def _slow_kernel(found: Findings) -> dict[str, Any] | None:
    for row in _data()["slow_kernel"]:
        if (row["runtime"], row["device"]) == (found.runtime, found.device) and found.format in row["formats"]:
            return dict(row)
    return None


def memory(found: Findings) -> tuple[Advice, ...]:
    """Remedies against much memory: the cache first where it is what takes it, then smaller weights."""
    return tuple(Advice(Symptom.MEMORY, *remedy) for remedy in _smaller(found))


def _smaller(found: Findings) -> Iterator[tuple[str, str, str]]:
    cache = _cache(found, found.context, found.slots, found.kv_type)
    if found.weights and cache > _CACHE_MATTERS * found.weights:
        why = f"the KV cache takes {_size(cache)} beside {_size(found.weights)} of weights"
        if found.slots > 1:
            saved = cache - _cache(found, found.context, 1, found.kv_type)
            yield "Serve one request at a time: concurrency=1.", f"{why}, for {found.slots} requests", _saved(saved)
        if found.context > 2048:
            half = found.context // 2
            saved = cache - _cache(found, half, found.slots, found.kv_type)
            yield f"Halve the context: context_length={half}.", f"{why}, for {found.context:,} tokens", _saved(saved)
        if found.kv_type == "f16" and found.runtime == "llamacpp":
            saved = cache - _cache(found, found.context, found.slots, "q8_0")
            remedy = (
                "Keep the KV cache in 8 bits (q8_0): set QLANGCHAIN_MEMORY to what may be taken, and the planner "
                "does so where f16 does not fit."
            )
            yield remedy, why, _saved(saved)
    ladder: list[str] = _data()["steps"]["GGUF"]
    coarser = "Q4_K_M" if not found.is_quantized or found.method is not Method.GGUF else _coarser(found.format, ladder)
    if coarser and found.weights:
        saved = found.weights - file_bytes(found.architecture, coarser)
        if saved > 0.05 * found.weights:
            grade = quality(coarser, found.parameters).grade
            why = f"the weights take {_size(found.weights)} in {found.format}"
            yield (
                f"Take {coarser}.",
                why,
                f"{_saved(saved)}, at a {grade.removesuffix(' loss')} loss by published figures",
            )


def _coarser(format: str, ladder: list[str]) -> str | None:
    """The next step down, but not below 4 bits: what is lost there is more than the memory is worth."""
    if format not in ladder:
        return None
    below = ladder[ladder.index("Q4_0") : ladder.index(format)]
    return ("Q4_K_M" if "Q4_K_M" in below else below[-1]) if below else None


def _cache(found: Findings, context: int, slots: int, kind: str) -> int:
    return kv_bytes(found.architecture, Load(context=context, slots=slots, kv_key=kind, kv_value=kind))


def _saved(number: int) -> str:
    return f"{_size(number)} less"


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


@functools.cache
def _data() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("advice.toml").read_text(encoding="utf-8"))
