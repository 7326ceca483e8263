"""How each architecture is laid out in GGUF: names of tensors, metadata, and the order of rotary pairs.

Source: llama.cpp's `conversion/{base,llama,qwen}.py` and `src/models/{llama,qwen2,qwen3}.cpp`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qlangchain.errors import CorruptFileError, UnsupportedModelError
from qlangchain.produce import gguf_file as kv
from qlangchain.produce.checkpoint import Checkpoint
from qlangchain.produce.model_config import ModelConfig

# Tensors that old checkpoints carry and that are computed from the config.
_COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|model\.rotary_emb\.inv_freq")

_QKV = ("attn_q", "attn_k", "attn_v")


@dataclass(frozen=True, slots=True)
class Mapped:
    """One tensor of the result: where it comes from and the shape that config.json promises.

    `head_dim` is set where the rows of each head are to be reordered for rotary pairs.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    head_dim: int | None = None


def map_tensors(config: ModelConfig, checkpoint: Checkpoint) -> list[Mapped]:
    """The tensors of the result in llama.cpp's order, each checked against config.json.

    Raises `CorruptFileError` where a tensor is missing or has another shape, `UnsupportedModelError` where
    there are tensors that the architecture does not have.
    """
    found = checkpoint.tensors
    mapped = [one for one in _candidates(config) if one.source in found or not _optional(config, one.source)]
    for one in mapped:
        tensor = found.get(one.source)
        if tensor is None:
            raise CorruptFileError(
                f"The weights hold no {one.source}, which {config.model_class} needs.",
                hint="Download the model again, all of its safetensors files.",
            )
        if tensor.shape != one.shape:
            raise CorruptFileError(
                f"{one.source} has the shape {list(tensor.shape)}; config.json says {list(one.shape)}.",
                hint="config.json and the weights belong to different models; download both again.",
            )
    known = {one.source for one in mapped}
    if config.tied:
        known.add("lm_head.weight")  # a copy of the embeddings that some programs save all the same
    strangers = sorted(name for name in found if name not in known and not _COMPUTED.fullmatch(name))
    if strangers:
        raise UnsupportedModelError(
            f"{config.model_class} has no {strangers[0]}, and the weights hold {len(strangers)} such tensors.",
            hint="Pass a plain text model of this architecture.",
        )
    return mapped


def _optional(config: ModelConfig, source: str) -> bool:
    # llama.cpp reads biases where they are; qwen2 always has those of q, k and v.
    return source.endswith(".bias") and not (config.architecture == "qwen2" and re.search(r"[qkv]_proj", source))


def _candidates(config: ModelConfig) -> Iterator[Mapped]:
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    # Only llama's graph rotates neighbours; qwen's rotates the two halves of a head, as transformers does.
    pairs = config.head_dim if config.architecture == "llama" else None
    if not config.tied:
        yield Mapped("output.weight", "lm_head.weight", (vocab, hidden))
    yield Mapped("token_embd.weight", "model.embed_tokens.weight", (vocab, hidden))
    for layer in range(config.layers):
        ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
        yield Mapped(f"{ours}.attn_norm.weight", f"{theirs}.input_layernorm.weight", (hidden,))
        for part, name, rows, columns, reorder in (
            ("attn_q", "self_attn.q_proj", q_rows, hidden, pairs),
            ("attn_k", "self_attn.k_proj", kv_rows, hidden, pairs),
            ("attn_v", "self_attn.v_proj", kv_rows, hidden, None),
            ("attn_output", "self_attn.o_proj", hidden, q_rows, None),
            ("ffn_gate", "mlp.gate_proj", inner, hidden, None),
            ("ffn_up", "mlp.up_proj", inner, hidden, None),
            ("ffn_down", "mlp.down_proj", hidden, inner, None),
        ):
            yield Mapped(f"{ours}.{part}.weight", f"{theirs}.{name}.weight", (rows, columns), reorder)
            if config.architecture == "llama" or (config.architecture == "qwen2" and part in _QKV):
                yield Mapped(f"{ours}.{part}.bias", f"{theirs}.{name}.bias", (rows,), reorder)
        if config.architecture == "qwen3":
            yield Mapped(f"{ours}.attn_q_norm.weight", f"{theirs}.self_attn.q_norm.weight", (config.head_dim,))
            yield Mapped(f"{ours}.attn_k_norm.weight", f"{theirs}.self_attn.k_norm.weight", (config.head_dim,))
        yield Mapped(f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight", (hidden,))
    yield Mapped("output_norm.weight", "model.norm.weight", (hidden,))


def pair_neighbours(values: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
    """Reorder the rows of whole heads so that rotary pairs (i, i + head_dim/2) become neighbours (2i, 2i + 1).

    `values` has the shape (heads * head_dim, columns), or (1, heads * head_dim) for a bias.
    """
    if values.shape[0] == 1:
        return pair_neighbours(values.reshape(-1, 1), head_dim).reshape(1, -1)
    halves = values.reshape(-1, 2, head_dim // 2, values.shape[1])
    return halves.swapaxes(1, 2).reshape(values.shape)


def rope_factors(config: ModelConfig) -> npt.NDArray[np.float32] | None:
    """Llama 3's divisors of the rotary frequencies, shape (head_dim/2,); None for other kinds of scaling.

    Source: `_compute_llama3_parameters` in transformers' modeling_rope_utils.py.
    """
    if config.rope.kind != "llama3":
        return None
    values = config.rope.values
    factor, low, high = values["factor"], values["low_freq_factor"], values["high_freq_factor"]
    original = values["original_max_position_embeddings"]
    frequency = config.rope.theta ** -(np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    wavelength = 2 * math.pi / frequency
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def model_metadata(config: ModelConfig) -> dict[str, bytes]:
    """The architecture's own keys, with llama.cpp's names."""
    values = {
        "block_count": kv.uint32(config.layers),
        "context_length": kv.uint32(config.context_length),
        "embedding_length": kv.uint32(config.hidden_size),
        "feed_forward_length": kv.uint32(config.intermediate_size),
        "attention.head_count": kv.uint32(config.heads),
        "attention.head_count_kv": kv.uint32(config.kv_heads),
        "rope.freq_base": kv.float32(config.rope.theta),
        "attention.layer_norm_rms_epsilon": kv.float32(config.rms_norm_eps),
    }
    if config.explicit_head_dim:
        values["attention.key_length"] = kv.uint32(config.head_dim)
        values["attention.value_length"] = kv.uint32(config.head_dim)
    if config.architecture == "llama":
        values["vocab_size"] = kv.uint32(config.vocab_size)
        values["rope.dimension_count"] = kv.uint32(config.head_dim)
    values |= _rope_metadata(config)
    return {f"{config.architecture}.{key}": value for key, value in values.items()}


def _rope_metadata(config: ModelConfig) -> dict[str, bytes]:
    rope = config.rope
    if rope.kind not in ("linear", "yarn"):
        return {}
    factor = rope.values["factor"]
    values = {"rope.scaling.type": kv.string(rope.kind), "rope.scaling.factor": kv.float32(factor)}
    if rope.kind == "linear":
        return values
    values["rope.scaling.original_context_length"] = kv.uint32(int(rope.values["original_max_position_embeddings"]))
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0
    if (attention := rope.values.get("attention_factor", usual)) != usual:
        # llama.cpp always multiplies by the usual factor, so its own key holds what is left.
        values["rope.scaling.attn_factor"] = kv.float32(attention / usual)
    return values
