"""What one offer would need and give on one engine: an option with its figures, or the number that speaks against it.

Hard limits come first (an engine that can, a kernel that there is, a disk that has the room, memory that holds it);
what passes gets its speed and its quality. Context, slots, the KV cache's type and the layers on the GPU are chosen
here as far as they were not asked for: as much as fits, and the caches of other requests before the context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from qlangchain.errors import InvalidInputError
from qlangchain.selection import kernels, memory, speed
from qlangchain.selection.explain import size
from qlangchain.selection.facts import ModelFacts, Offer
from qlangchain.selection.formats import canonical
from qlangchain.selection.kv_cache import Load, kv_bytes
from qlangchain.selection.layers import Attention
from qlangchain.selection.plan import Estimate, Range
from qlangchain.selection.quality import Quality, Verdict, quality
from qlangchain.selection.speed import Measurement
from qlangchain.selection.weights import Weights, formats, predicted
from qlangchain.types import EngineFacts, Hardware, Method, Origin, Rejection, Requirements, Target

DEFAULT_CONTEXT: Final = 8192  # tokens; the longest context of a new model would take more memory than its weights
SMALLEST_CONTEXT: Final = 2048  # tokens; below it most prompts do not fit any more
MIN_CONTEXT: Final = 16
DEFAULT_SLOTS: Final = 8
# How full the context is when the speed is predicted: most conversations use a part of it.
_FILL: Final = 0.25
LLAMA: Final = frozenset(("llamacpp", "llama-cpp-python"))
# What the other engines' processes take beside weights and cache: torch and its kernels (measured with
# transformers 5.23 on a CPU: 430 to 650 MiB resident with a model of 21 MB; vLLM adds its own workers).
_OVERHEAD: Final = {"transformers": 650 << 20, "vllm": 2048 << 20}
_GIB: Final = 1 << 30
# The engine's process is not told yet to keep the experts of single layers on the CPU.
_EXPERTS_FIRST: Final = False


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that is the same for all candidates of one plan."""

    wanted: Requirements
    hardware: Hardware
    model: ModelFacts
    target: Target
    threads: int
    runs: Sequence[Measurement] = ()
    verdicts: Sequence[Verdict] = ()


@dataclass(frozen=True, slots=True)
class Option:
    """An offer on an engine that would work, with what it would be started with."""

    offer: Offer
    engine: EngineFacts
    context: int
    slots: int
    kv_type: str
    gpu_layers: int
    estimate: Estimate
    quality: Quality
    cpu_experts: int = 0

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return f"{self.offer.label}, {self.offer.origin}"


@dataclass(frozen=True, slots=True)
class Misfit:
    """What does not fit, and by how much: `missing` bytes at its smallest."""

    rejection: Rejection
    missing: int = 0


@dataclass(frozen=True, slots=True)
class _Setting:
    context: int
    slots: int
    kv_type: str


def cost(offer: Offer, engine: EngineFacts, at: Situation) -> Option | Misfit:
    """Cost one offer on one engine."""
    if reason := _refusal(offer, engine, at):
        return Misfit(Rejection(_name(offer, engine), reason))
    weights = weights_of(offer, at.model)
    smallest: Misfit | None = None
    for setting in _settings(weights, offer, engine, at):
        found = _placed(offer, engine, weights, setting, at)
        if isinstance(found, Option):
            return found
        if smallest is None or found.missing < smallest.missing:
            smallest = found
    assert smallest is not None  # there is at least one setting
    return smallest


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
    known = offer.method is Method.GGUF and canonical(offer.format) in formats()
    shape = predicted(model.architecture, canonical(offer.format) if known else "F16", imatrix=offer.imatrix)
    if known and offer.origin is Origin.PRODUCED:
        return shape
    # What is there or listed has a size, which beats any rule; the rule still tells how it is spread.
    factor = offer.size_bytes / max(shape.total, 1)
    return replace(
        shape,
        format=offer.format,
        total=offer.size_bytes,
        embedding=int(shape.embedding * factor),
        output=int(shape.output * factor),
        layers=tuple(int(layer * factor) for layer in shape.layers),
        experts=tuple(int(expert * factor) for expert in shape.experts),
        idle=int(shape.idle * factor),
    )


def _name(offer: Offer, engine: EngineFacts) -> str:
    return f"{offer.label} on {engine.runtime}"


def _refusal(offer: Offer, engine: EngineFacts, at: Situation) -> str:
    """Say why this pair is out of the question, apart from memory; empty where nothing speaks against it."""
    wanted, hardware = at.wanted, at.hardware
    if offer.method not in engine.methods:
        return f"{engine.runtime} does not serve {offer.method} weights"
    if not engine.installed:
        return f"{engine.runtime} is not installed ({engine.install_hint})"
    if offer.origin is Origin.PRODUCED and not wanted.allow_produce:
        return "it would have to be made, and allow_produce=False"
    if offer.why_not:
        return offer.why_not
    on_gpu = at.target is not Target.CPU and engine.gpu and hardware.has_gpu
    if at.target is Target.GPU and not on_gpu:
        return f"{engine.version} cannot use the GPU"
    method = offer.method if offer.method in (Method.GPTQ, Method.AWQ) else None
    if reason := kernels.supported(
        offer.format,
        engine.runtime,
        hardware.gpus[0] if on_gpu else None,
        method=method,
        flags=hardware.flags,
        symmetric=offer.symmetric,
        desc_act=offer.desc_act,
    ):
        return reason
    needed = offer.fetch_bytes + offer.write_bytes
    if hardware.disk_free is not None and needed > hardware.disk_free:
        return f"it takes {size(needed)} of disk, and {size(hardware.disk_free)} are free"
    return ""


def _settings(weights: Weights, offer: Offer, engine: EngineFacts, at: Situation) -> Iterator[_Setting]:
    """Yield what to try, the best first: all slots, one slot, a KV cache in 8 bits, then half of the context."""
    wanted, model = at.wanted, at.model
    context = context_of(wanted, model, [], [])
    while True:
        slots = wanted.concurrency or _slots(context, weights, engine, at)
        yield _Setting(context, slots, "f16")
        if wanted.concurrency is None and slots > 1:
            yield _Setting(context, 1, "f16")
        if engine.runtime in LLAMA and can_shrink_cache(model):
            yield _Setting(context, wanted.concurrency or 1, "q8_0")
        if wanted.context_length is not None or context // 2 < SMALLEST_CONTEXT:
            return
        context //= 2


def _slots(context: int, weights: Weights, engine: EngineFacts, at: Situation) -> int:
    """As many requests at once as have their caches in a quarter of what the weights leave free."""
    if engine.runtime == "transformers":
        return 1  # it works on one request at a time
    free = at.hardware.memory_available - weights.loaded
    if at.target is Target.GPU:
        free = _gpu_free(at.hardware) - weights.loaded
    one = kv_bytes(at.model.architecture, Load(context=context))
    return max(1, min(DEFAULT_SLOTS, free // 4 // max(one, 1)))


def _gpu_free(hardware: Hardware) -> int:
    """The free bytes of all GPUs. A GPU without memory of its own has at most what the machine has."""
    return sum(
        min(gpu.free_bytes, hardware.memory_available) if gpu.unified else gpu.free_bytes for gpu in hardware.gpus
    )


def _placed(offer: Offer, engine: EngineFacts, weights: Weights, setting: _Setting, at: Situation) -> Option | Misfit:
    load = Load(context=setting.context, slots=setting.slots, kv_key=setting.kv_type, kv_value=setting.kv_type)
    hardware, model = at.hardware, at.model.architecture
    on_gpu = at.target is not Target.CPU and engine.gpu and hardware.has_gpu
    gpu_free, unified = (_gpu_free(hardware), any(gpu.unified for gpu in hardware.gpus)) if on_gpu else (0, False)
    gpu, cpu_experts, layers = memory.Memory(), 0, 0
    if engine.runtime not in LLAMA:
        cpu = _other(engine, weights, load, at)
        if on_gpu:
            gpu, cpu, layers = cpu, memory.Memory(overhead=_OVERHEAD.get(engine.runtime, _GIB), margin=64 << 20), -1
    elif on_gpu and at.wanted.gpu_layers != 0:
        split = memory.split(model, weights, load, gpu_free, gpu_layers=at.wanted.gpu_layers, experts_first=_EXPERTS_FIRST)
        gpu, cpu, layers, cpu_experts = split.gpu, split.cpu, split.gpu_layers, split.cpu_experts
        if layers > len(model.layers):
            layers = -1
        if at.target is Target.GPU and (layers != -1 or cpu_experts):
            whole = memory.split(model, weights, load, gpu_free, gpu_layers=-1).gpu
            return _misfit(offer, engine, setting, whole.total, gpu_free, "of the GPU's memory")
    else:
        cpu = memory.need(model, weights, load)
    if gpu.total > gpu_free:
        return _misfit(offer, engine, setting, gpu.total, gpu_free, "of the GPU's memory")
    together = cpu.total + (gpu.total if unified else 0)
    if together > hardware.memory_available:
        return _misfit(offer, engine, setting, together, hardware.memory_available, "of memory")
    estimate, verdict = _estimate(offer, engine, weights, load, cpu, gpu, at, cpu_experts)
    return Option(
        offer, engine, setting.context, setting.slots, setting.kv_type, layers, estimate, verdict, cpu_experts
    )


def _other(engine: EngineFacts, weights: Weights, load: Load, at: Situation) -> memory.Memory:
    """What vLLM or transformers takes: the weights as they lie, the cache, activations, and torch itself.

    Activations of a prompt take 3.5 times its KV cache in transformers (measured with Qwen2.5-7B in AWQ: 200 kB for
    each token, where the cache has 57), which computes a prompt at once; vLLM does so in pieces.
    """
    kv = kv_bytes(at.model.architecture, load)
    compute = (
        int(2.5 * kv / load.slots)
        if engine.runtime == "transformers"
        else memory.compute_bytes(at.model.architecture, replace(load, ubatch=2048))
    )
    whole = weights.total + kv + compute
    return memory.Memory(
        weights=weights.total, kv=kv, compute=compute,
        overhead=_OVERHEAD.get(engine.runtime, _GIB), margin=max(256 << 20, whole // 20),
    )  # fmt: skip


def _misfit(offer: Offer, engine: EngineFacts, setting: _Setting, needed: int, free: int, of_what: str) -> Misfit:
    cache = "" if setting.kv_type == "f16" else f" in {setting.kv_type}"
    reason = (
        f"needs {size(needed)} {of_what} with a context of {setting.context:,} tokens{cache}, and {size(free)} are free"
    )
    return Misfit(Rejection(_name(offer, engine), reason), needed - free)


def _estimate(
    offer: Offer, engine: EngineFacts, weights: Weights, load: Load, cpu: memory.Memory, gpu: memory.Memory,
    at: Situation, cpu_experts: int,
) -> tuple[Estimate, Quality]:  # fmt: skip
    parts = {
        name: getattr(cpu, name) + getattr(gpu, name) for name in ("weights", "kv", "compute", "output", "overhead")
    }
    verdict = next((one for one in reversed(at.verdicts) if _is_about(one, offer, at.model)), None)
    judged = quality(
        offer.format,
        at.model.parameters,
        method=offer.method if offer.method in (Method.GPTQ, Method.AWQ) else None,
        imatrix=offer.imatrix,
        verdict=verdict,
    )
    decode, prefill, throughput = _speeds(offer, engine, weights, load, cpu, gpu, at)
    estimate = Estimate(
        memory=cpu.total - cpu.margin,
        memory_free=at.hardware.memory_available,
        margin=cpu.margin + gpu.margin,
        parts=parts,
        gpu=gpu.total - gpu.margin,
        gpu_free=_gpu_free(at.hardware) if gpu.total else 0,
        decode=_range(decode),
        prefill=_range(prefill),
        throughput=_range(throughput),
        loss=judged.loss,
        loss_unit=judged.unit,
        rank=judged.rank,
        grade=judged.grade,
        quality_source=judged.source,
        fetch=offer.fetch_bytes,
        write=offer.write_bytes,
        notes=tuple(decode.reasons)
        + ((f"The experts of {cpu_experts} layers stay on the CPU.",) if cpu_experts else ()),
    )
    return estimate, judged


def _is_about(verdict: Verdict, offer: Offer, model: ModelFacts) -> bool:
    named = f"{model.name}:{offer.format}"
    return verdict.artifact in (offer.key, named) if offer.key else verdict.artifact == named


def _speeds(
    offer: Offer, engine: EngineFacts, weights: Weights, load: Load, cpu: memory.Memory, gpu: memory.Memory,
    at: Situation,
) -> tuple[speed.Speed, speed.Speed, speed.Speed]:  # fmt: skip
    model, hardware = at.model.architecture, at.hardware
    used = max(layer.experts_used for layer in model.trunk)
    read = speed.bytes_per_token(
        weights.loaded,
        embedding_bytes=weights.embedding,
        tied=model.tied,
        expert_bytes=sum(weights.experts),
        experts=model.experts,
        experts_used=used,
    )
    share = gpu.weights / ((gpu.weights + cpu.weights) or 1)
    kv = kv_bytes(model, replace(load, slots=1)) * _FILL
    count = len(model.trunk)
    loads = []
    if gpu.weights:
        card = hardware.gpus[0]
        loads.append(speed.on_gpu(card, hardware, read * share, kv * share, round(count * share)))
    if share < 1:
        rest = 1 - share
        loads.append(speed.on_cpu(hardware, read * rest, kv * rest, round(count * rest), at.threads))
    method = offer.method if offer.method in (Method.GPTQ, Method.AWQ) else None
    decode = speed.decode(loads, format=offer.format, runtime=engine.runtime, method=method)
    device = "cpu" if not gpu.weights else "gpu" if share >= 0.999 else "hybrid"
    corrected = speed.correct(
        decode, at.runs, machine=speed.machine_of(hardware), runtime=engine.runtime, device=device,
        format=offer.format, method=method, artifact=offer.key,
    )  # fmt: skip
    active = at.model.parameters * read / (weights.loaded or 1)
    prefill = speed.prefill(loads, max(active, 1), gpus=hardware.gpus)
    one_kv = kv / (read + kv or 1)
    return corrected, prefill, speed.throughput(corrected, prefill, load.slots, kv_share=one_kv)


def _range(figure: speed.Speed) -> Range:
    return Range(figure.low, figure.expected, figure.high)
