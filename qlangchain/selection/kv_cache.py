"""The KV cache, to the byte.

Source of every rule: llama.cpp of October 2026, src/llama-context.cpp (how a context is divided), llama-kv-cache.cpp,
llama-kv-cache-iswa.cpp (sliding windows) and llama-memory-recurrent.cpp. The rule for windows changed between May
2025 and October 2026, so it holds for the engine that is pinned, and the tests compare it with the engine's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qlangchain.errors import InvalidInputError
from qlangchain.selection.layers import Architecture, Attention, Layer
from qlangchain.selection.weights import row_bytes

UBATCH: Final = 512  # tokens computed at once: n_ubatch, which our runtime leaves at llama.cpp's default
_CELLS: Final = 256  # contexts are rounded up to it: GGML_PAD(n_ctx, 256)
# The types that llama.cpp takes for --cache-type-k and --cache-type-v.
KV_TYPES: Final = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How an engine is asked to hold a model.

    `context` is in tokens for each of `slots` requests at once. `unified` is one cache that all slots share (ours
    have one each, but for embeddings). `kv_key` and `kv_value` are the ggml types of the cache. With `pooling` it is
    an engine for embeddings, which computes a whole text at once. `repack` says whether the engine copies weights
    into the order that its CPU kernels like best, `mmap` whether it maps the file.
    """

    context: int
    slots: int = 1
    unified: bool = False
    kv_key: str = "F16"
    kv_value: str = "F16"
    ubatch: int = UBATCH
    pooling: bool = False
    mmap: bool = True
    repack: bool = True

    def __post_init__(self) -> None:
        for name, most in (("context", 1 << 31), ("slots", 256), ("ubatch", 1 << 31)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise InvalidInputError(f"{name}={value!r} cannot be.", hint=f"Pass a whole number, 1 to {most}.")
        for name in ("kv_key", "kv_value"):
            if getattr(self, name).upper() not in KV_TYPES:
                raise InvalidInputError(
                    f"{name}={getattr(self, name)!r} is no type of KV cache.", hint=f"Known: {', '.join(KV_TYPES)}."
                )

    @classmethod
    def embedding(cls, context: int, slots: int = 1) -> Load:
        """As our runtime starts an engine for embeddings: a text in one batch, one cache for all slots."""
        return cls(context=context, slots=slots, unified=True, ubatch=context, pooling=True)

    @property
    def tokens(self) -> int:
        """The tokens that are computed at once at most."""
        return min(self.ubatch, self.context * self.slots)

    @property
    def cells(self) -> int:
        """The tokens that each stream of the cache has room for."""
        whole = padded(self.context * self.slots)
        return whole if self.unified else padded(whole // self.slots)

    @property
    def streams(self) -> int:
        """The separate caches."""
        return 1 if self.unified else self.slots

    def window_cells(self, window: int) -> int:
        """The tokens that a layer with a sliding window keeps in each stream: the window, and a batch to come."""
        seen = window * (self.slots if self.unified else 1) + self.tokens
        return padded(min(self.cells, seen))


def padded(tokens: int) -> int:
    """Round up to what llama.cpp rounds a context up to."""
    return -(-tokens // _CELLS) * _CELLS


def kv_bytes(model: Architecture, load: Load) -> int:
    """What the KV cache and the states of recurrent layers take, in bytes, for all slots."""
    return sum(each_kv_bytes(model.trunk, load))


def each_kv_bytes(layers: Sequence[Layer], load: Load) -> list[int]:
    """What each of these layers keeps, in bytes; layers that are one and the same object are reckoned once."""
    known = {id(layer): layer_kv_bytes(layer, load) for layer in {id(layer): layer for layer in layers}.values()}
    return [known[id(layer)] for layer in layers]


def layer_kv_bytes(layer: Layer, load: Load) -> int:
    """What one layer keeps for all slots, in bytes.

    MLA keeps one compressed vector with its positional part for all heads, and no value. A recurrent layer keeps one
    state in f32 per slot; some layers keep one beside their keys and values. A layer that reads an earlier one's
    cache, and a head that predicts, keep nothing.
    """
    if layer.prediction:
        return 0
    state = layer.state.bytes_per_sequence * load.slots if layer.state else 0
    if not layer.caches:
        return state
    if layer.attention is Attention.LATENT:
        return state + row_bytes(load.kv_key.upper(), layer.latent + layer.rope) * load.cells * load.streams
    cells = load.window_cells(layer.window) if layer.attention is Attention.SLIDING else load.cells
    row = row_bytes(load.kv_key.upper(), layer.kv_heads * layer.key_width)
    row += row_bytes(load.kv_value.upper(), layer.kv_heads * layer.value_width)
    return state + row * cells * load.streams


def bytes_per_token(model: Architecture, kv_key: str = "F16", kv_value: str = "F16") -> int:
    """What one more token takes once all windows are full, in bytes: the layers over the whole context alone."""
    short = Load(context=1 << 20, kv_key=kv_key, kv_value=kv_value)
    longer = Load(context=1 << 21, kv_key=kv_key, kv_value=kv_value)
    return (kv_bytes(model, longer) - kv_bytes(model, short)) >> 20
