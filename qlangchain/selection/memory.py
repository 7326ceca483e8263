"""What a model takes in memory, part by part, and how its layers are divided between GPU and CPU.

All sizes are in bytes. The figures are llama.cpp's own to within 64 MiB or 1 %, whichever is larger, which
`benchmarks/memory.py` shows and tests hold; other engines' are in `budgets.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from qlangchain.errors import InvalidInputError
from qlangchain.selection.kv_cache import Load, each_kv_bytes, kv_bytes, layer_kv_bytes
from qlangchain.selection.layers import Architecture, Attention, State
from qlangchain.selection.weights import Weights

__all__ = [
    "CUDA_CONTEXT", "Load", "Memory", "Split", "compute_bytes", "kv_bytes", "kv_bytes_per_token", "need",
    "output_bytes", "past_prompts", "slots_that_fit", "split",
]  # fmt: skip

MIB: Final = 1 << 20
# The server's own process: 34 MiB resident with xllamacpp 2026.10 and almost no model, and 207 bytes for each token
# of a vocabulary without merges (measured from 4,096 to 262,144 tokens); merges are taken to be as much again.
PROCESS: Final = 48 * MIB
_VOCABULARY: Final = 400
# What a CUDA process takes on each card before any model: 300 to 600 MiB by card and driver. A rule of thumb, to be
# replaced by what NVML shows where a process runs already.
CUDA_CONTEXT: Final = 512 * MIB
# What is left free: llama.cpp leaves 1 GiB on each GPU (common/fit.cpp); on the CPU the operating system takes back
# cache first, so 2 % and at least 64 MiB stand for what is not counted here.
GPU_MARGIN: Final = 1024 * MIB
_CPU_MARGIN: Final = 64 * MIB
# Of an architecture that is not known the buffers were off by up to 90 MiB (24 of them against llama.cpp's own).
_GUESS_MARGIN: Final = 192 * MIB
# What llama.cpp's server keeps beside its slots, as our runtime bounds it: copies of a slot's windows and states to go
# back to (`--ctx-checkpoints`, 32 for each slot by default: 640 MiB for a toy with windows of 20 MiB), and the caches
# of past prompts (`--cache-ram`, 8 GiB by default).
CHECKPOINTS: Final = 2
_PAST_PROMPTS: Final = 256 * MIB
# The types that x86 kernels copy into an order of their own (ggml/src/ggml-cpu/repack.cpp, AVX2). An AVX-512 build
# does so with Q2_K as well.
_REPACKED: Final = ("Q4_0", "Q4_K", "IQ4_NL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The parts of what a model takes on one device, in bytes; `total` is all of them.

    `weights` are those that are loaded, `kv` the cache with recurrent states, `compute` the buffer of the graph,
    `output` the logits, `checkpoints` copies of windows and states that the server can go back to, `overhead` the
    process itself or the CUDA context, `margin` what is left free on purpose, for past prompts among others.
    `cached` is not part of `total`: pages of the file that a limit may count, and that are dropped when needed.
    """

    weights: int = 0
    kv: int = 0
    compute: int = 0
    output: int = 0
    checkpoints: int = 0
    overhead: int = 0
    margin: int = 0
    cached: int = 0

    @property
    def engine(self) -> int:
        """The parts that llama.cpp reports itself: weights, cache, graph and output."""
        return self.weights + self.kv + self.compute + self.output

    @property
    def total(self) -> int:
        """Everything that must be free before the engine starts."""
        return self.engine + self.checkpoints + self.overhead + self.margin

    def fits(self, available: int) -> str:
        """Say how `available` bytes are for it: "fits", "tight" (only the margin is missing) or "does not fit"."""
        if self.total <= available:
            return "fits"
        return "tight" if self.total - self.margin <= available else "does not fit"


def need(model: Architecture, weights: Weights, load: Load, *, margin: int | None = None) -> Memory:
    """What a llama.cpp engine of ours takes on the CPU, all layers there.

    `margin` is what to leave free, in bytes; None leaves the `past_prompts`, and 2 % and at least 64 MiB, or 5 % and at
    least 192 MiB where the architecture is not known.
    """
    loaded = weights.loaded + (0 if load.mmap else _twice(model, weights))
    parts = Memory(
        weights=loaded,
        kv=kv_bytes(model, load),
        compute=compute_bytes(model, load),
        output=output_bytes(model, load),
        checkpoints=0 if load.pooling else CHECKPOINTS * load.slots * _checkpoint(model, load),
        overhead=PROCESS + _VOCABULARY * model.vocabulary,
        cached=_repacked(weights) if load.mmap and load.repack else 0,
    )
    if margin is None:
        margin = _spare(model, parts.engine) + (0 if load.pooling else past_prompts(parts.kv))
    if margin < 0:
        raise InvalidInputError(f"margin={margin} cannot be.", hint="Pass bytes, 0 or more.")
    return replace(parts, margin=margin)


def _spare(model: Architecture, taken: int) -> int:
    """What is left free on the CPU for what is not counted: more where the architecture is only assumed."""
    return max(_GUESS_MARGIN, taken // 20) if model.assumed else max(_CPU_MARGIN, taken // 50)


def past_prompts(kv: int) -> int:
    """The bytes in which the server may keep caches of past prompts: as much as its slots have, at most 256 MiB.

    They fill up as prompts come in, so what is resident of an engine grows by so much from its first answer on.
    """
    return min(kv, _PAST_PROMPTS)


def _checkpoint(model: Architecture, load: Load) -> int:
    """One copy of what a slot cannot go back in: the windows of its sliding layers, and its states.

    Source: llama.cpp, `llama_state_seq_get_size_ext` with LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY; seen resident.
    """
    one = replace(load, slots=1, unified=False)
    size = 0
    for layer in model.trunk:
        if layer.state:
            size += layer.state.bytes_per_sequence
        if layer.caches and layer.attention is Attention.SLIDING:
            size += (
                layer_kv_bytes(replace(layer, state=None), one)
                * min(layer.window, load.cells)
                // one.window_cells(layer.window)
            )
    return size


def _twice(model: Architecture, weights: Weights) -> int:
    # llama.cpp asks for the output matrix of Gemma 4 before the embedding that it is the same as, and without a
    # mapped file keeps both (src/models/gemma4.cpp; seen in its own figures).
    return weights.embedding if model.name == "gemma4" and model.tied else 0


def _repacked(weights: Weights) -> int:
    """The pages of weights that lie in memory a second time, in the order of the CPU's kernels.

    Measured on Llama-3.1-8B in Q4_K_M: 7,983 MiB resident with a mapped file, of which 3,204 MiB were copies.
    """
    return sum(weights.types.get(type, 0) for type in _REPACKED)


def compute_bytes(model: Architecture, load: Load) -> int:
    """The buffer of the computation graph, with flash attention, which llama.cpp switches on by itself.

    For each token computed at once, in f32: three times the widest network, the queries and three vectors of the
    hidden size; and a mask in f16 over the cells of each kind of cache. That is the peak of a dense layer as
    `ggml_gallocr` lays it out, found from llama.cpp's own figures for 14 architectures, windows and batches, most of
    them met exactly. With experts or MLA the peak lies elsewhere, and the figure is the nearest bound above it. When
    all tokens give logits (embeddings), those and five vectors may be more.
    """
    tokens = load.tokens
    trunk = model.trunk
    caching = [layer for layer in trunk if layer.caches]
    mask = 0
    if any(layer.attention is not Attention.SLIDING for layer in caching):
        mask += 2 * tokens * load.cells
    if windows := [layer.window for layer in caching if layer.attention is Attention.SLIDING]:
        mask += 2 * tokens * load.window_cells(max(windows))
    outputs = tokens if load.pooling else load.slots
    logits = 4 * outputs * model.vocabulary + 20 * outputs * model.hidden
    states = max((_mixing(layer.state, load) for layer in trunk if layer.state and layer.state.size), default=0)
    return mask + max(4 * tokens * _peak(model), states, logits)


def _mixing(state: State, load: Load) -> int:
    """What a recurrent layer holds while it works: all requests' states twice, and vectors as wide as the layer.

    Those were 7.3 to 8.1 for each token in seven models of Mamba, Mamba-2 and gated delta nets with 1 to 64 slots.
    """
    return 2 * state.bytes_per_sequence * load.slots + 4 * 8 * state.inner * load.tokens


@lru_cache(maxsize=64)
def _peak(model: Architecture) -> int:
    """The most floats that are alive at once for each token."""
    hidden, trunk = model.hidden, model.trunk
    traits = model.traits
    network = max(max(layer.feed_forward, layer.expert_width * layer.experts_used) for layer in trunk)
    queries = max((layer.heads * layer.key_width for layer in trunk if layer.caches), default=hidden)
    peak = 3 * network + 3 * hidden + (0 if traits.gated_query or traits.fused_ffn else queries)
    if used := max(layer.experts_used for layer in trunk):
        peak = max(peak, 2 * used * hidden + 2 * network + 2 * hidden)
    for layer in trunk:
        if layer.attention is Attention.LATENT:
            wide = layer.heads * (2 * layer.latent + layer.rope + 2 * layer.key_width)
            peak = max(peak, wide + 3 * hidden)
            break
    if model.per_layer_width:
        peak += model.per_layer_width * len(model.layers) + hidden
    return peak


def output_bytes(model: Architecture, load: Load) -> int:
    """The logits, or the vectors of an engine for embeddings, of each slot in f32: llama.cpp `output_reserve`."""
    return 4 * load.slots * (model.vocabulary + (model.hidden if load.pooling else 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Where the layers lie.

    `gpu_layers` is llama.cpp's `--n-gpu-layers` (one more than there are layers means everything), `cpu_experts` its
    `--n-cpu-moe`: of so many layers, from the first, the experts stay on the CPU. `gpu_experts` are the bytes of those
    that do not.
    """

    gpu_layers: int
    cpu_experts: int
    gpu: Memory
    cpu: Memory
    gpu_experts: int = 0

    @property
    def gpu_share(self) -> float:
        """The part of the weights that lies on the GPU, 0 to 1."""
        every = self.gpu.weights + self.cpu.weights
        return self.gpu.weights / every if every else 0.0


def split(
    model: Architecture, weights: Weights, load: Load, gpu_free: int, *, gpu_layers: int | None = None,
    cpu_experts: int = 0, margin: int = GPU_MARGIN, experts_first: bool = True,
) -> Split:  # fmt: skip
    """Put as much as fits into `gpu_free` bytes of a GPU, the rest on the CPU.

    Layers go to the GPU from the last one on, and the output matrix before them, as llama.cpp counts them; the cache
    of a layer lies where the layer does. With `experts_first` a mixture keeps all layers on the GPU and gives up the
    experts of its first layers instead: they are most of its bytes and few of them are read for each token.
    `gpu_layers` is a number that is asked for, -1 for all, whether it fits or not, with `cpu_experts`; None leaves both
    open.
    Source: llama.cpp, common/fit.cpp.
    """
    count = len(model.layers)
    if gpu_free < 0 or (gpu_layers is not None and gpu_layers < -1):
        raise InvalidInputError(
            f"gpu_free={gpu_free}, gpu_layers={gpu_layers} cannot be.",
            hint="Pass the free bytes of the GPU, and 0 or more layers, -1 for all.",
        )
    place = _Placement(model, weights, load, margin)
    if gpu_layers is not None:
        return place.at(count + 1 if gpu_layers == -1 else min(gpu_layers, count + 1), cpu_experts)
    low, high = 0, count + 1
    while low < high:  # the most layers that fit: each one takes something more
        middle = (low + high + 1) // 2
        low, high = (middle, high) if place.at(middle).gpu.total <= gpu_free else (low, middle - 1)
    best = place.at(low)
    if not (experts_first and model.experts) or best.gpu_layers > count:
        return best
    for kept in range(1, count + 1):
        tried = place.at(count + 1, kept)
        if tried.gpu.total <= gpu_free:
            return tried
    return best


class _Placement:
    """A model whose layers are to be placed; what does not depend on where they lie is reckoned once."""

    def __init__(self, model: Architecture, weights: Weights, load: Load, margin: int) -> None:
        self._model, self._weights, self._load, self._margin = model, weights, load, margin
        self._whole = need(model, weights, load)
        self._kv = each_kv_bytes(model.layers, load)

    def at(self, gpu_layers: int, cpu_experts: int = 0) -> Split:
        """Place the last `gpu_layers` on the GPU, the output counting as one, but for the first layers' experts."""
        model, weights, whole = self._model, self._weights, self._whole
        count, on = len(model.layers), bool(gpu_layers)
        first = max(count + 1 - gpu_layers, 0) if on else count
        on_gpu = [index for index in range(first, count) if not model.layers[index].prediction]
        held = sum(weights.layers[index] for index in on_gpu)
        held -= sum(weights.experts[index] for index in on_gpu if index < cpu_experts)
        experts = sum(weights.experts[index] for index in on_gpu if index >= cpu_experts)
        cached = sum(self._kv[index] for index in on_gpu)
        # A tied output is the embedding once more: rows are looked up on the CPU, whatever is on the GPU.
        output = (weights.output or weights.embedding) if on else 0
        gpu = Memory(
            weights=held + output, kv=cached, compute=whole.compute if on else 0,
            overhead=CUDA_CONTEXT if on else 0, margin=self._margin if on else 0,
        )  # fmt: skip
        on_cpu = max(weights.loaded - held - (weights.output if on else 0), 0)
        # With every layer on the GPU the CPU's graph is only the rows that are looked up.
        graph = 4 * self._load.tokens * model.hidden if gpu_layers > count and not cpu_experts else whole.compute
        cpu = Memory(
            weights=on_cpu, kv=whole.kv - cached, compute=graph, output=whole.output, checkpoints=whole.checkpoints,
            overhead=whole.overhead, margin=_spare(model, on_cpu) + past_prompts(whole.kv),
        )  # fmt: skip
        return Split(gpu_layers=gpu_layers, cpu_experts=cpu_experts, gpu=gpu, cpu=cpu, gpu_experts=experts)


def kv_bytes_per_token(layers: int, kv_heads: int, key_length: int, value_length: int, element_bytes: float = 2) -> int:
    """Return what one token of context takes in the KV cache: a key and a value per layer and KV head.

    For models all of whose layers are alike; `kv_bytes` knows the others. `element_bytes` is 2 for f16.
    """
    return int(layers * kv_heads * (key_length + value_length) * element_bytes)


def slots_that_fit(*, context: int, kv_bytes_per_token: int, available: int, most: int) -> int:
    """Return how many requests of `context` tokens each may be held at once, at least 1 and at most `most`.

    The KV caches of all slots together take no more than a quarter of `available`: the rest is for the
    engine's compute buffers and for other programs.
    """
    per_slot = max(1, context * kv_bytes_per_token)
    return max(1, min(most, available // 4 // per_slot))
