"""Where a model would lie on a machine: what it takes of the memory and of the GPUs, or what it lacks.

llama.cpp's figures are exact (`memory.py`), those of vLLM and transformers are estimates (`budgets.py`). Sizes are in
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from qlangchain.selection import budgets, memory
from qlangchain.selection.explain import size
from qlangchain.selection.facts import ModelFacts
from qlangchain.selection.kv_cache import Load, kv_bytes
from qlangchain.selection.quality import Verdict
from qlangchain.selection.speed import Measurement
from qlangchain.selection.weights import Weights
from qlangchain.types import EngineFacts, Hardware, Requirements, Target

LLAMA: Final = frozenset(("llamacpp", "llama-cpp-python"))
# What the other engines' processes take beside weights and cache: torch and its kernels (measured with
# transformers 5.23 on a CPU: 430 to 650 MiB resident with a model of 21 MB; vLLM adds its own workers).
_PROCESS: Final = {"transformers": 650 << 20, "vllm": 2048 << 20}
_GIB: Final = 1 << 30
_LEAST_MARGIN: Final = 256 << 20  # estimates of the other engines are off by more than llama.cpp's


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

    def on_gpu(self, engine: EngineFacts) -> bool:
        """Whether the engine would use a GPU here."""
        return self.target is not Target.CPU and engine.gpu and self.hardware.has_gpu


@dataclass(frozen=True, slots=True)
class Setting:
    """What an engine would be asked for: tokens of context for each of `slots` requests, and the cache's type."""

    context: int
    slots: int
    kv_type: str

    @property
    def load(self) -> Load:
        """The same, as the memory's formulas take it."""
        return Load(context=self.context, slots=self.slots, kv_key=self.kv_type, kv_value=self.kv_type)


@dataclass(frozen=True, slots=True)
class Place:
    """A setting that fits, and where everything lies; `gpu_layers` is -1 for all of them.

    Of the first `cpu_experts` layers the experts stay on the CPU; `gpu_experts` are the bytes of those that do not.
    """

    setting: Setting
    cpu: memory.Memory
    gpu: memory.Memory
    gpu_layers: int = 0
    cpu_experts: int = 0
    gpu_experts: int = 0


@dataclass(frozen=True, slots=True)
class Shortage:
    """A setting that does not fit: the reason with its numbers, and the bytes that are missing."""

    reason: str
    missing: int


def place(
    engine: EngineFacts, weights: Weights, setting: Setting, at: Situation, cpu_experts: int = 0
) -> Place | Shortage:
    """Lay out the weights, the cache and the buffers on the machine.

    `cpu_experts` goes with a number of layers that is asked for; where that is left open, so are they.
    """
    if engine.runtime not in LLAMA:
        return _other(engine, weights, setting, at)
    model, load, hardware = at.model.architecture, setting.load, at.hardware
    asked = at.wanted.gpu_layers
    if not at.on_gpu(engine) or asked == 0:
        found = Place(setting, memory.need(model, weights, load), memory.Memory())
        return _checked(found, hardware, gpu_free=0)
    free = gpu_free(hardware)
    split = memory.split(model, weights, load, free, gpu_layers=asked, cpu_experts=cpu_experts)
    whole = split.gpu_layers > len(model.layers) and not split.cpu_experts
    if at.target is Target.GPU and asked is None and not whole:
        needed = memory.split(model, weights, load, free, gpu_layers=-1).gpu.total
        return _shortage(setting, needed, free, "of the GPU's memory")
    layers = asked if asked is not None else -1 if split.gpu_layers > len(model.layers) else split.gpu_layers
    found = Place(setting, split.cpu, split.gpu, layers, split.cpu_experts, split.gpu_experts)
    return _checked(found, hardware, gpu_free=free)


def gpu_free(hardware: Hardware) -> int:
    """The bytes that a model may take of all GPUs together.

    Each card has its own CUDA context and margin; `memory.split` counts them once, so those of the further cards are
    taken off here. A GPU without memory of its own has at most what the machine has.
    """
    reserve = memory.CUDA_CONTEXT + memory.GPU_MARGIN
    free = [min(gpu.free_bytes, hardware.memory_available) if gpu.unified else gpu.free_bytes for gpu in hardware.gpus]
    room = sum(max(0, one - reserve) for one in free)
    return room + reserve if room else max(free, default=0)


def kv_per_request(setting: Setting, model: ModelFacts) -> int:
    """What the cache of one request takes, in bytes."""
    return kv_bytes(model.architecture, replace(setting.load, slots=1))


def _checked(found: Place, hardware: Hardware, *, gpu_free: int) -> Place | Shortage:
    if found.gpu.total > gpu_free:
        return _shortage(found.setting, found.gpu.total, gpu_free, "of the GPU's memory")
    shared = found.gpu.total if any(gpu.unified for gpu in hardware.gpus) else 0
    needed = found.cpu.total + shared
    if needed > hardware.memory_available:
        return _shortage(found.setting, needed, hardware.memory_available, "of memory")
    return found


def _shortage(setting: Setting, needed: int, free: int, of_what: str) -> Shortage:
    cache = "" if setting.kv_type == "f16" else f" in {setting.kv_type}"
    reason = (
        f"needs {size(needed)} {of_what} with a context of {setting.context:,} tokens{cache}, and {size(free)} are free"
    )
    return Shortage(reason, needed - free)


def _other(engine: EngineFacts, weights: Weights, setting: Setting, at: Situation) -> Place | Shortage:
    """Lay out vLLM or transformers: all of the model on the GPU, or all on the CPU."""
    process = _PROCESS.get(engine.runtime, _GIB)
    if not at.on_gpu(engine):
        taken = _on_cpu(engine, weights, setting, at)
        whole = replace(taken, overhead=process, margin=max(_LEAST_MARGIN, taken.engine // 20))
        return _checked(Place(setting, whole, memory.Memory()), at.hardware, gpu_free=0)
    host = memory.Memory(overhead=process, margin=64 << 20)
    card = at.hardware.gpus[0]
    free = min(card.free_bytes, at.hardware.memory_available) if card.unified else card.free_bytes
    if engine.runtime == "vllm":
        share = budgets.gpu_share(free, card.total_bytes)
        budget = budgets.vllm(
            at.model.architecture, weights, card.total_bytes, context=setting.context, utilization=share
        )
        fixed = budget.weights + budget.activations + budget.graphs
        if not budget.fits:
            return _shortage(setting, fixed + budget.sequence, budget.requested, "of the GPU's memory (vLLM's share)")
        gpu = memory.Memory(
            weights=budget.weights, kv=min(budget.kv, budget.sequence * setting.slots),
            compute=budget.activations + budget.graphs,
        )  # fmt: skip
    else:
        taken = budgets.transformers(at.model.architecture, weights, context=setting.context)
        gpu = replace(
            taken, overhead=taken.overhead + memory.CUDA_CONTEXT, margin=max(_LEAST_MARGIN, taken.engine // 20)
        )
    return _checked(Place(setting, host, gpu, gpu_layers=-1), at.hardware, gpu_free=free)


def _on_cpu(engine: EngineFacts, weights: Weights, setting: Setting, at: Situation) -> memory.Memory:
    model = at.model.architecture
    if engine.runtime == "transformers":
        return budgets.transformers(model, weights, context=setting.context)
    # vLLM on a CPU is given its cache by number, and computes prompts in pieces of 2,048 tokens.
    pieces = replace(setting.load, ubatch=2048)
    return memory.Memory(
        weights=weights.total, kv=kv_bytes(model, setting.load), compute=memory.compute_bytes(model, pieces)
    )
