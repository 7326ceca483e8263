"""How each architecture is laid out in GGUF: names of tensors, metadata, and the order of rotary pairs.

What differs between families is data, `gguf_families.toml`. Source: llama.cpp's `conversion/` and `src/models/`.
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

_ROTATED = ("attn_q", "attn_k")


@dataclass(frozen=True, slots=True)
class Mapped:
    """One tensor of the result: where it comes from and the shape that config.json promises.

    `head_dim` is set where the rows of each head are to be reordered for rotary pairs, and `offset` is added to
    every value. An `optional` tensor may be missing.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    head_dim: int | None = None
    offset: float = 0.0
    optional: bool = False


def map_tensors(config: ModelConfig, checkpoint: Checkpoint) -> list[Mapped]:
    """The tensors of the result in llama.cpp's order, each checked against config.json.

    Raises `CorruptFileError` where a tensor is missing or has another shape, `UnsupportedModelError` where
    there are tensors that the architecture does not have.
    """
    found = checkpoint.tensors
    mapped = [one for one in _candidates(config) if one.source in found or not one.optional]
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


def _candidates(config: ModelConfig) -> Iterator[Mapped]:
    family = config.family
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    sizes = {
        "hidden": config.hidden_size, "inner": config.intermediate_size, "doubled": 2 * config.intermediate_size,
        "queries": queries, "keys": keys, "fused": queries + 2 * keys,
    }  # fmt: skip
    hidden, offset = config.hidden_size, family.norm_offset
    if not config.tied:
        yield Mapped("output.weight", "lm_head.weight", (config.vocab_size, hidden))
    yield Mapped("token_embd.weight", "model.embed_tokens.weight", (config.vocab_size, hidden))
    for layer in range(config.layers):
        ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
        norms = [
            Mapped(f"{ours}.{norm}.weight", f"{theirs}.{name}.weight", (hidden,), offset=offset)
            for norm, name in family.norms.items()
        ]
        yield norms[0]
        for part, (name, rows, columns) in family.linears.items():
            pairs = config.head_dim if family.neighbours and part in _ROTATED else None
            yield Mapped(f"{ours}.{part}.weight", f"{theirs}.{name}.weight", (sizes[rows], sizes[columns]), pairs)
            if part in family.biases or part in family.required_biases:
                yield Mapped(
                    f"{ours}.{part}.bias",
                    f"{theirs}.{name}.bias",
                    (sizes[rows],),
                    pairs,
                    optional=part in family.biases,
                )
        if family.head_norms:
            for part in ("q", "k"):
                yield Mapped(
                    f"{ours}.attn_{part}_norm.weight", f"{theirs}.self_attn.{part}_norm.weight", (config.head_dim,),
                    offset=offset,
                )  # fmt: skip
        yield from norms[1:]
    yield Mapped("output_norm.weight", "model.norm.weight", (hidden,), offset=offset)


def pair_neighbours(values: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
    """Reorder the rows of whole heads so that rotary pairs (i, i + head_dim/2) become neighbours (2i, 2i + 1).

    `values` has the shape (heads * head_dim, columns), or (1, heads * head_dim) for a bias.
    """
    if values.shape[0] == 1:
        return pair_neighbours(values.reshape(-1, 1), head_dim).reshape(1, -1)
    halves = values.reshape(-1, 2, head_dim // 2, values.shape[1])
    return halves.swapaxes(1, 2).reshape(values.shape)


def rope_factors(config: ModelConfig) -> dict[str, npt.NDArray[np.float32]]:
    """Divisors of the rotary frequencies, each of the shape (dimensions / 2,), by their names in GGUF.

    Source: `_compute_llama3_parameters` and `_compute_longrope_parameters` in transformers' modeling_rope_utils.py.
    """
    rope = config.rope
    if rope.kind == "longrope":
        return {
            "rope_factors_long.weight": np.array(rope.long, np.float32),
            "rope_factors_short.weight": np.array(rope.short, np.float32),
        }
    if rope.kind != "llama3":
        return {}
    values = rope.values
    factor, low, high = values["factor"], values["low_freq_factor"], values["high_freq_factor"]
    original = values["original_max_position_embeddings"]
    frequency = rope.theta ** -(np.arange(0, rope.dimensions, 2, dtype=np.float64) / rope.dimensions)
    wavelength = 2 * math.pi / frequency
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return {"rope_freqs.weight": (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)}


def model_metadata(config: ModelConfig) -> dict[str, bytes]:
    """The architecture's own keys, with llama.cpp's names."""
    wanted = config.family.metadata
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
    if config.explicit_head_dim or "attention.key_length" in wanted:
        values["attention.key_length"] = kv.uint32(config.head_dim)
        values["attention.value_length"] = kv.uint32(config.head_dim)
    if "vocab_size" in wanted:
        values["vocab_size"] = kv.uint32(config.vocab_size)
    if "rope.dimension_count" in wanted:
        values["rope.dimension_count"] = kv.uint32(config.rope.dimensions)
    if config.attention_softcap is not None:
        values["attn_logit_softcapping"] = kv.float32(config.attention_softcap)
    if config.final_softcap is not None:
        values["final_logit_softcapping"] = kv.float32(config.final_softcap)
    values |= _window_metadata(config) | _rope_metadata(config)
    return {f"{config.architecture}.{key}": value for key, value in values.items()}


def _window_metadata(config: ModelConfig) -> dict[str, bytes]:
    key = "attention.sliding_window"
    if key in config.family.metadata:  # phi3: llama.cpp reads it and attends to all; 0 is none
        return {key: kv.uint32(config.window or 0)}
    if config.family.window != "layers":
        return {}
    if not any(config.windows):
        return {}
    values = {key: kv.uint32(config.window or 0)}
    usual = tuple(bool(number % config.family.window_period) for number in range(1, config.layers + 1))
    if config.windows != usual:
        values[f"{key}_pattern"] = kv.uint32s([int(one) for one in config.windows])
    return values


def _rope_metadata(config: ModelConfig) -> dict[str, bytes]:
    rope, values = config.rope, {}
    original = rope.values.get("original_max_position_embeddings", config.context_length)
    if rope.local_theta is not None:
        values["rope.freq_base_swa"] = kv.float32(rope.local_theta)
    if "rope.scaling.original_context_length" in config.family.metadata:
        values["rope.scaling.original_context_length"] = kv.uint32(int(original))
    if rope.kind == "longrope":
        factor = rope.values.get("factor", config.context_length / original)
        usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1.0 else 1.0
        values["rope.scaling.attn_factor"] = kv.float32(rope.values.get("attention_factor", usual))
    if rope.kind not in ("linear", "yarn"):
        return values
    factor = rope.values["factor"]
    values |= {"rope.scaling.type": kv.string(rope.kind), "rope.scaling.factor": kv.float32(factor)}
    if rope.kind == "linear":
        return values
    values["rope.scaling.original_context_length"] = kv.uint32(int(original))
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0
    if (attention := rope.values.get("attention_factor", usual)) != usual:
        # llama.cpp always multiplies by the usual factor, so its own key holds what is left.
        values["rope.scaling.attn_factor"] = kv.float32(attention / usual)
    return values
