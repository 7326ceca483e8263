"""What vLLM and transformers take of a GPU, in bytes.

Neither can be known as exactly as llama.cpp: vLLM measures itself when it starts and takes what it is allowed, and
transformers' peak depends on the prompt. Both figures here are estimates, and say what they are made of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from qlangchain.errors import InvalidInputError
from qlangchain.selection.layers import Architecture, Attention, Layer
from qlangchain.selection.memory import MIB, Memory
from qlangchain.selection.weights import Weights

UTILIZATION: Final = 0.92  # vLLM 0.33's default of --gpu-memory-utilization
_SPARE: Final = 0.02  # of a GPU's memory, left for what others take between our look and vLLM's start
BLOCK: Final = 16  # tokens that vLLM hands out at once: --block-size
_GRAPHS: Final = 512 * MIB  # CUDA graphs; vLLM prints what they really took
_RUNTIME: Final = 200 * MIB  # beside weights and cache; measured with transformers on Qwen2.5-7B AWQ at one token
# The peak while a prompt is read, in KV caches of that prompt: Qwen2.5-7B AWQ grew by 200 kB a token (5.39 GiB at 1
# token, 10.98 GiB at 30,720) where its cache grows by 57 kB.
_PREFILL: Final = 3.5


def gpu_share(free: int, total: int) -> float:
    """The share of a GPU that vLLM is told to take: it refuses to start where less than that is free.

    At most its own default, in whole hundredths, and at least 0.05.
    """
    share = min(UTILIZATION, free / max(total, 1) - _SPARE)
    return max(0.05, math.floor(100 * share + 1e-9) / 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmBudget:
    """How vLLM divides a GPU, in bytes.

    `requested` is what it takes of the card and must be free when it starts, `kv` what is left of it for the KV
    cache, `sequence` what one request of the whole context takes. `tokens` is the longest context that fits.
    """

    requested: int
    weights: int
    activations: int
    graphs: int
    kv: int
    sequence: int
    tokens: int

    @property
    def fits(self) -> bool:
        """Whether vLLM would start: at least one request of the whole context must have room."""
        return self.kv >= self.sequence

    @property
    def requests(self) -> float:
        """The requests of the whole context that have room at once."""
        return max(self.kv, 0) / self.sequence if self.sequence else 0.0


def vllm(
    model: Architecture,
    weights: Weights,
    gpu_total: int,
    *,
    context: int,
    utilization: float = UTILIZATION,
    batch: int = 2048,
    requests: int = 256,
    element_bytes: int = 2,
    eager: bool = False,
) -> VllmBudget:
    """Divide a GPU of `gpu_total` bytes as vLLM does.

    `batch` is `--max-num-batched-tokens`, `requests` `--max-num-seqs`, `element_bytes` 2, or 1 with
    `--kv-cache-dtype fp8`. `eager` leaves out the CUDA graphs. Source: vLLM 0.33, v1/worker/gpu_worker.py
    `determine_available_memory` (requested - weights - activations - graphs) and v1/kv_cache_interface.py; the
    activations, which it measures, are estimated here by the widest layer in 16 bits and the logits in 32.
    """
    if not 0 < utilization <= 1 or context < 1 or gpu_total < 0:
        raise InvalidInputError(
            f"utilization={utilization}, context={context}, gpu_total={gpu_total} cannot be.",
            hint="Pass a utilization above 0 and at most 1, and whole numbers of tokens and bytes.",
        )
    widest = max(2 * layer.feed_forward + 3 * layer.expert_width * layer.experts_used for layer in model.trunk)
    activations = 2 * batch * (4 * model.hidden + widest) + 8 * min(requests, batch) * model.vocabulary
    graphs = 0 if eager else _GRAPHS
    requested = int(gpu_total * utilization)
    kv = requested - weights.loaded - activations - graphs

    def taken(tokens: int) -> int:
        return sum(_vllm_layer(layer, tokens, batch, element_bytes) for layer in model.trunk)

    low, high = 0, max(model.max_context, context)
    while low < high:  # the longest context that fits: `taken` never falls
        middle = (low + high + 1) // 2
        low, high = (middle, high) if taken(middle) <= kv else (low, middle - 1)
    return VllmBudget(
        requested=requested, weights=weights.loaded, activations=activations, graphs=graphs, kv=kv,
        sequence=taken(context), tokens=low,
    )  # fmt: skip


def _vllm_layer(layer: Layer, tokens: int, batch: int, element_bytes: int) -> int:
    if layer.attention is Attention.RECURRENT:
        return layer.state.bytes_per_sequence if layer.state else 0
    if not layer.caches:
        return 0
    if layer.attention is Attention.SLIDING:  # SlidingWindowSpec: the window, what is being read, and one block more
        tokens = min(layer.window - 1 + batch, tokens) + BLOCK
    blocks = -(-tokens // BLOCK) * BLOCK
    if layer.attention is Attention.LATENT:
        return (layer.latent + layer.rope) * element_bytes * blocks
    return layer.kv_heads * (layer.key_width + layer.value_width) * element_bytes * blocks


def transformers(model: Architecture, weights: Weights, *, context: int, batch: int = 1, margin: int = 0) -> Memory:
    """What a worker of ours with transformers takes for prompts of up to `context` tokens.

    The activations of a long prompt outweigh its cache (`_PREFILL`): they are `compute` here.
    """
    if context < 1 or batch < 1:
        raise InvalidInputError(f"context={context}, batch={batch} cannot be.", hint="Pass whole numbers above 0.")
    kv = batch * sum(_dynamic(layer, context) for layer in model.trunk)
    return Memory(
        weights=weights.loaded, kv=kv, compute=int(kv * (_PREFILL - 1)), output=4 * batch * model.vocabulary,
        overhead=_RUNTIME, margin=margin,
    )  # fmt: skip


def _dynamic(layer: Layer, tokens: int) -> int:
    # transformers' cache of a model with MLA holds the keys and values of all heads, not the compressed vector.
    if layer.attention is Attention.RECURRENT:
        return layer.state.bytes_per_sequence if layer.state else 0
    if not layer.caches:
        return 0
    kept = min(tokens, layer.window) if layer.attention is Attention.SLIDING else tokens
    return layer.kv_heads * (layer.key_width + layer.value_width) * 2 * kept
