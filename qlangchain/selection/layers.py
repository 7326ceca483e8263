"""What the arithmetic of memory needs to know of a model: its layers, and how wide they are.

Plain values, filled by `hf_config.from_config` and `gguf_metadata.from_gguf`. Widths are in elements, contexts and
windows in tokens. The words are llama.cpp's and transformers' own, joined where they mean the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Attention(StrEnum):
    """How a layer looks back."""

    FULL = "full"  # at every token
    SLIDING = "sliding"  # at the last `window` tokens
    LATENT = "latent"  # at every token, through one compressed vector for all heads (MLA)
    RECURRENT = "recurrent"  # through a state of constant size
    NONE = "none"  # not at all


@dataclass(frozen=True, slots=True)
class State:
    """A recurrent layer: Mamba-2, or a gated delta net, in the words of llama.cpp's `ssm.*` keys.

    `inner` is the width of the values, `size` that of a state, `groups` the heads of the keys, `rank` the heads of the
    values and `kernel` the taps of the convolution. A layer that is a short convolution only (LFM2) has no `size`.
    """

    kernel: int
    inner: int
    size: int = 0
    groups: int = 0
    rank: int = 0

    @property
    def bytes_per_sequence(self) -> int:
        """What one sequence keeps in it, in bytes of f32, however long it is.

        Source: llama.cpp, src/llama-hparams.cpp, `n_embd_r` (the convolution's last inputs) and `n_embd_s`.
        """
        convolution = max(self.kernel - 1, 0) * (self.inner + 2 * self.groups * self.size)
        return 4 * (convolution + self.size * self.inner)


@dataclass(frozen=True, slots=True)
class Layer:
    """One block of a decoder.

    `latent` and `rope` are the compressed and the positional part of an MLA key, `query_rank` the width that its
    queries are compressed to (0: they are not). `own_cache` is False where a layer reads the keys and values of an
    earlier one, `values` where its keys serve as values too. `feed_forward` is the dense network's width, `shared`
    that of the experts that every token passes. `prediction` marks a head that predicts further tokens (MTP): it is
    in the file, and takes part in no answer.
    """

    attention: Attention
    heads: int = 0
    kv_heads: int = 0
    key_width: int = 0
    value_width: int = 0
    window: int = 0
    latent: int = 0
    rope: int = 0
    query_rank: int = 0
    state: State | None = None
    own_cache: bool = True
    values: bool = True
    feed_forward: int = 0
    experts: int = 0
    experts_used: int = 0
    expert_width: int = 0
    shared: int = 0
    prediction: bool = False

    @property
    def caches(self) -> bool:
        """Whether it holds keys of its own in the KV cache."""
        return self.attention in _CACHED and self.own_cache and not self.prediction


_CACHED = (Attention.FULL, Attention.SLIDING, Attention.LATENT)


@dataclass(frozen=True, slots=True)
class Traits:
    """What a family's blocks have beside their big matrices; `families.toml` has the values and their sources."""

    fused_qkv: bool = False
    fused_ffn: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    gated_query: bool = False
    sinks: bool = False
    norms: tuple[str, ...] = ("attn_norm", "ffn_norm")
    shared_gate: bool = False
    expert_bias: bool = False
    expert_type: str = ""
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model, as far as memory goes.

    `name` is the architecture's name in GGUF files. `per_layer_width` is the width of the embeddings that Gemma 3n
    and 4 look up for each layer. `assumed` says what had to be taken for granted because the family is not known;
    it is empty for the known ones.
    """

    name: str
    hidden: int
    vocabulary: int
    tied: bool
    max_context: int
    layers: tuple[Layer, ...]
    per_layer_width: int = 0
    traits: Traits = Traits()
    assumed: str = ""

    def __hash__(self) -> int:
        # Much is remembered by architecture: its layers tell models apart too rarely to be worth hashing each time.
        return hash((self.name, self.hidden, self.vocabulary, self.max_context, len(self.layers)))

    @property
    def trunk(self) -> tuple[Layer, ...]:
        """The layers that answer: all but those that predict further tokens."""
        return tuple(layer for layer in self.layers if not layer.prediction)

    @property
    def experts(self) -> int:
        """The experts of a layer, 0 in a dense model."""
        return max(layer.experts for layer in self.layers)

    @property
    def query_groups(self) -> int:
        """Query heads for each KV head of the first layer, as llama.cpp's `n_gqa()` counts them; 0 without any."""
        first = self.layers[0]
        return first.heads // first.kv_heads if first.kv_heads else 0
