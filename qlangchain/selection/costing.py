"""What one offer would need and give on one engine: an option with its figures, or the number that speaks against it.

Hard limits come first (an engine that can, a kernel that there is, a disk that has the room, memory that holds it);
what passes gets its speed and its quality. Context, slots, the KV cache's type and the layers on the GPU are chosen
here as far as they were not asked for: as much as fits, and the caches of other requests before the context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from qlangchain.errors import InvalidInputError
from qlangchain.selection import kernels, speed
from qlangchain.selection.explain import size
from qlangchain.selection.facts import ModelFacts, Offer
from qlangchain.selection.formats import canonical
from qlangchain.selection.layers import Architecture, Attention
from qlangchain.selection.placing import LLAMA, Place, Setting, Shortage, Situation, gpu_free, kv_per_request, place
from qlangchain.selection.plan import Estimate, Range
from qlangchain.selection.quality import Quality, Verdict, quality
from qlangchain.selection.weights import Weights, predicted
from qlangchain.types import EngineFacts, Method, Origin, Rejection, Requirements, Target, UseCase

DEFAULT_CONTEXT: Final = 8192  # tokens; the longest context of a new model would take more memory than its weights
SMALLEST_CONTEXT: Final = 2048  # tokens; below it most prompts do not fit any more
MIN_CONTEXT: Final = 16
DEFAULT_SLOTS: Final = 8
# How full the context is when the speed is predicted: most conversations use a part of it.
_FILL: Final = 0.25
_PERSONAL_SHARE: Final = 0.75  # of the free memory; the rest is for a person's other programs
_Speeds = tuple[speed.Speed, speed.Speed, speed.Speed]  # decode, prefill, all requests together


@dataclass(frozen=True, slots=True)
class Option:
    """An offer on an engine that would work, with what it would be started with.

    Of the first `cpu_experts` layers the experts stay on the CPU. `crowded` says that it leaves other programs too
    little memory, even with one request at a time, `off_gpu` why the GPU that is there is not used for it.
    """

    offer: Offer
    engine: EngineFacts
    setting: Setting
    gpu_layers: int
    estimate: Estimate
    quality: Quality
    cpu_experts: int = 0
    crowded: bool = False
    off_gpu: str = ""

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return f"{self.offer.label}, {self.offer.origin}"


@dataclass(frozen=True, slots=True)
class Misfit:
    """What cannot be, and why; `missing` are the bytes that it lacks at its smallest, 0 where that is not the cause."""

    offer: Offer
    rejection: Rejection
    missing: int = 0


def cost(offer: Offer, engine: EngineFacts, at: Situation) -> Option | Misfit:
    """Cost one offer on one engine."""
    name = f"{offer.label} on {engine.runtime}"
    off_gpu = _kernel(offer, engine, at) if at.target is Target.HYBRID and at.on_gpu(engine) else None
    if off_gpu:
        engine = replace(engine, gpu=False)  # the CPU may still do
    if reason := _refusal(offer, engine, at):
        return Misfit(offer, Rejection(name, reason))
    weights = weights_of(offer, at.model)
    smallest: Shortage | None = None
    for context, kv_type in _contexts(engine, at):
        found = _widest(offer, engine, weights, Setting(context, 1, kv_type), at)
        if isinstance(found, Option):
            return replace(found, off_gpu=off_gpu or "")
        if smallest is None or found.missing < smallest.missing:
            smallest = found
    assert smallest is not None  # there is at least one context
    return Misfit(offer, Rejection(name, smallest.reason), smallest.missing)


def context_of(wanted: Requirements, model: ModelFacts, reasons: list[str], notices: list[str]) -> int:
    """Return the context to begin with; raises InvalidInputError for one that cannot be."""
    asked = wanted.context_length
    if asked is None:
        context = min(DEFAULT_CONTEXT, model.max_context)
        reasons.append(f"Context of {context} tokens: the default, within the model's {model.max_context}.")
        return context
    if asked < MIN_CONTEXT:
        raise InvalidInputError(f"context_length={asked} is too small.", hint=f"Pass at least {MIN_CONTEXT}.")
    if asked > model.max_context:
        if wanted.cap_context:
            notices.append(f"The context is {model.max_context} tokens, not {asked}: the model was made for no more.")
            return model.max_context
        raise InvalidInputError(
            f"context_length={asked} is more than the model was made for.", hint=f"Pass at most {model.max_context}."
        )
    return asked


def can_shrink_cache(model: ModelFacts) -> bool:
    """Whether llama.cpp takes a KV cache in q8_0 for it: it ended its process on phi-4, and failed on MLA models."""
    shape = model.architecture
    return shape.name != "phi3" and all(layer.attention is not Attention.LATENT for layer in shape.layers)


def weights_of(offer: Offer, model: ModelFacts) -> Weights:
    """Return the weights of an offer: exact from its header, by rule from its type, or its size over the layers."""
    if offer.weights is not None:
        return offer.weights
    shape = _by_rule(offer, model)
    if shape is not None and offer.origin is Origin.PRODUCED:
        return shape
    shape = shape or predicted(model.architecture, "F16")
    # What is there or listed has a size, which beats any rule; the rule still tells how it is spread.
    return _scaled(shape, offer.format, offer.size_bytes)


def _by_rule(offer: Offer, model: ModelFacts) -> Weights | None:
    if offer.method is not Method.GGUF:
        return None
    try:
        return predicted(model.architecture, canonical(offer.format), imatrix=offer.imatrix)
    except InvalidInputError:
        return None  # a type without a rule


@lru_cache(maxsize=256)
def _scaled(shape: Weights, format: str, size_bytes: int) -> Weights:
    factor = size_bytes / max(shape.total, 1)
    return replace(
        shape,
        format=format,
        total=size_bytes,
        embedding=int(shape.embedding * factor),
        output=int(shape.output * factor),
        layers=tuple(int(layer * factor) for layer in shape.layers),
        experts=tuple(int(expert * factor) for expert in shape.experts),
        idle=int(shape.idle * factor),
    )


def _refusal(offer: Offer, engine: EngineFacts, at: Situation) -> str:
    """Say why this pair is out of the question, apart from memory; empty where nothing speaks against it."""
    if offer.method not in engine.methods:
        return f"{engine.runtime} does not serve {offer.method} weights"
    if offer.why_not:
        return offer.why_not
    if not engine.installed:
        return f"{engine.runtime} is not installed ({engine.install_hint.rstrip('.')})"
    if at.target is Target.GPU and not at.on_gpu(engine):
        return f"{engine.version} cannot use the GPU"
    if reason := _kernel(offer, engine, at):
        return reason
    needed, free = offer.fetch_bytes + offer.write_bytes, at.hardware.disk_free
    if free is not None and needed > free:
        return f"it takes {size(needed)} of disk, and {size(free)} are free"
    return ""


def _kernel(offer: Offer, engine: EngineFacts, at: Situation) -> str | None:
    """Say why there is no kernel; None where there is one."""
    return kernels.supported(
        offer.format,
        engine.runtime,
        at.hardware.gpus[0] if at.on_gpu(engine) else None,
        method=_method(offer),
        flags=at.hardware.flags,
        symmetric=offer.symmetric,
        desc_act=offer.desc_act,
    )


def _contexts(engine: EngineFacts, at: Situation) -> Iterator[tuple[int, str]]:
    """Yield what to try, the best first: the context, then with a KV cache in 8 bits, then half of it."""
    context = context_of(at.wanted, at.model, [], [])
    while True:
        yield context, "f16"
        if engine.runtime in LLAMA and can_shrink_cache(at.model):
            yield context, "q8_0"
        if at.wanted.context_length is not None or context // 2 < SMALLEST_CONTEXT:
            return
        context //= 2


def _widest(offer: Offer, engine: EngineFacts, weights: Weights, one: Setting, at: Situation) -> Option | Shortage:
    """Serve as many requests at once as may be, where no number was asked for, with this context and cache.

    Where more requests would push layers from the GPU, the use case decides: its answers' speed, or all of them
    together. More memory never gives less, because what fitted before is still among what is tried.
    """
    asked = at.wanted.concurrency
    least = place(engine, weights, replace(one, slots=asked or 1), at)
    if isinstance(least, Shortage):
        return least
    places = [least]
    slots = 1 if asked is not None else _most_slots(one, weights, engine, at)
    while slots > 1:
        found = place(engine, weights, replace(one, slots=slots), at)
        if isinstance(found, Place) and not _is_crowded(found, at):
            places.append(found)
            if (found.gpu_layers, found.cpu_experts) == (least.gpu_layers, least.cpu_experts):
                places.remove(least)  # what serves more requests at the same speed is better
                break
        slots //= 2
    if at.wanted.use_case is not UseCase.PRODUCTION and least in places:
        places = [least]  # an answer's speed goes before how many there are

    def worth(pair: tuple[Place, _Speeds]) -> tuple[float, int]:
        _, _, together = pair[1]
        return together.expected, pair[0].setting.slots

    best, speeds = max(((found, _speeds(offer, engine, weights, found, at)) for found in places), key=worth)
    return _option(offer, engine, best, speeds, at, crowded=_is_crowded(least, at))


def _is_crowded(found: Place, at: Situation) -> bool:
    taken = found.cpu.total - found.cpu.margin
    return at.wanted.use_case is UseCase.PERSONAL and taken > _PERSONAL_SHARE * at.hardware.memory_available


def _most_slots(one: Setting, weights: Weights, engine: EngineFacts, at: Situation) -> int:
    """A power of two of requests whose caches take at most a quarter of what the weights leave free."""
    if engine.runtime == "transformers":
        return 1  # it works on one request at a time
    free = at.hardware.memory_available
    if at.on_gpu(engine):
        free = gpu_free(at.hardware) if at.target is Target.GPU else max(free, gpu_free(at.hardware))
    fit = (free - weights.loaded) // 4 // max(kv_per_request(one, at.model), 1)
    return 1 << (max(1, min(DEFAULT_SLOTS, fit)).bit_length() - 1)


def estimate(
    option: Option, setting: Setting, gpu_layers: int, at: Situation, *, cpu_experts: int = 0
) -> Estimate | None:
    """What an option needs and gives with other settings than its own; None where it would not fit."""
    offer, engine = option.offer, option.engine
    if engine.runtime in LLAMA and at.on_gpu(engine):
        at = replace(at, wanted=replace(at.wanted, gpu_layers=gpu_layers))
    weights = weights_of(offer, at.model)
    found = place(engine, weights, setting, at, cpu_experts)
    if isinstance(found, Shortage):
        return None
    return _option(offer, engine, found, _speeds(offer, engine, weights, found, at), at, crowded=False).estimate


def _option(
    offer: Offer, engine: EngineFacts, found: Place, speeds: _Speeds, at: Situation, *, crowded: bool
) -> Option:
    cpu, gpu = found.cpu, found.gpu
    names = ("weights", "kv", "compute", "output", "checkpoints", "overhead")
    verdict = next((one for one in reversed(at.verdicts) if _is_about(one, offer, at.model)), None)
    judged = _judged(offer.format, at.model.parameters, _method(offer), offer.imatrix, verdict)
    estimate = Estimate(
        memory=cpu.total - cpu.margin,
        memory_free=at.hardware.memory_available,
        margin=cpu.margin + gpu.margin,
        parts={name: getattr(cpu, name) + getattr(gpu, name) for name in names},
        gpu=gpu.total - gpu.margin,
        gpu_free=gpu_free(at.hardware) if gpu.total else 0,
        decode=_range(speeds[0]),
        prefill=_range(speeds[1]),
        throughput=_range(speeds[2]),
        loss=judged.loss,
        loss_unit=judged.unit,
        rank=judged.rank,
        grade=judged.grade,
        quality_source=judged.source,
        fetch=offer.fetch_bytes,
        write=offer.write_bytes,
        cached=cpu.cached,
        notes=speeds[0].reasons,
    )
    return Option(offer, engine, found.setting, found.gpu_layers, estimate, judged, found.cpu_experts, crowded)


@lru_cache(maxsize=1024)
def _judged(format: str, parameters: int, method: str | None, imatrix: bool, verdict: Verdict | None) -> Quality:
    return quality(format, parameters, method=method, imatrix=imatrix, verdict=verdict)


def _method(offer: Offer) -> str | None:
    """What tells GPTQ's INT4 from AWQ's; every other format says by itself what it is."""
    return offer.method if offer.method in (Method.GPTQ, Method.AWQ) else None


def _is_about(verdict: Verdict, offer: Offer, model: ModelFacts) -> bool:
    return verdict.artifact in (offer.key or None, f"{model.name}:{offer.format}")


def _speeds(offer: Offer, engine: EngineFacts, weights: Weights, found: Place, at: Situation) -> _Speeds:
    model, hardware, cpu, gpu = at.model.architecture, at.hardware, found.cpu, found.gpu
    whole = max(weights.loaded, 1)  # an empty file is refused by who opens it, not here
    on_gpu, on_cpu = _read(model, weights, found)
    read = on_gpu + on_cpu
    # The cache of a layer lies where the layer does.
    share = gpu.kv / (gpu.kv + cpu.kv) if gpu.kv + cpu.kv else float(bool(gpu.weights))
    kv = kv_per_request(found.setting, at.model) * _FILL
    count = len(model.trunk)
    loads = []
    if gpu.weights:
        loads.append(speed.on_gpu(hardware.gpus[0], hardware, on_gpu, kv * share, round(count * share)))
    if on_cpu:
        rest = 1 - share
        loads.append(speed.on_cpu(hardware, on_cpu, kv * rest, round(count * rest), at.threads))
    method = _method(offer)
    decode = speed.decode(loads, format=offer.format, runtime=engine.runtime, method=method)
    device = "cpu" if not gpu.weights else "hybrid" if on_cpu else "gpu"
    corrected = speed.correct(
        decode, at.runs, machine=speed.machine_of(hardware), runtime=engine.runtime, device=device,
        format=offer.format, method=method, artifact=offer.key,
    )  # fmt: skip
    active = at.model.parameters * read / whole
    prefill = speed.prefill(loads, max(active, 1), gpus=hardware.gpus)
    cache_share = kv / (read + kv)
    return corrected, prefill, speed.throughput(corrected, prefill, found.setting.slots, kv_share=cache_share)


def _read(model: Architecture, weights: Weights, found: Place) -> tuple[float, float]:
    """The bytes of weights that are read for one token, of the GPU's memory and of the machine's.

    Rows of the embedding are looked up; where it serves as the output too, the GPU has a copy of its own to read.
    """

    def read(held: float, experts: float, *, embedding: float = 0) -> float:
        return speed.bytes_per_token(
            held, embedding_bytes=embedding, tied=model.tied, expert_bytes=experts, experts=model.experts,
            experts_used=_experts_used(model),
        )  # fmt: skip

    gpu, cpu, every = found.gpu.weights, found.cpu.weights, sum(weights.experts)
    if not gpu:
        return 0.0, read(max(weights.loaded, 1), every, embedding=weights.embedding)  # empty: refused by who opens it
    if not cpu:  # an engine that takes all of it to the GPU
        return read(gpu, every, embedding=weights.embedding), 0.0
    if found.gpu_layers == -1 and not found.cpu_experts:
        return read(gpu, every), 0.0
    rest = max(cpu - weights.embedding, 0)
    return read(gpu, found.gpu_experts), read(rest, every - found.gpu_experts)


@lru_cache(maxsize=64)
def _experts_used(model: Architecture) -> int:
    return max(layer.experts_used for layer in model.trunk)


def _range(figure: speed.Speed) -> Range:
    return Range(figure.low, figure.expected, figure.high)
