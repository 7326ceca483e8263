"""GGUF files that are all header: a model of any size in a few MB, because the weights are a hole in the file.

llama.cpp loads one with `no_alloc` in about a second and then tells its own figures (`llama_oracle.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlangchain.artifacts.headers import GGML_TYPES
from qlangchain.selection.architecture import Architecture, Attention
from qlangchain.selection.tensors import Tensor, tensors
from qlangchain.selection.weights import tensor_bytes

NUMBERS = {name: number for number, (name, _, _) in GGML_TYPES.items()}
UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9


def metadata_of(model: Architecture) -> dict[str, Any]:
    """The metadata that llama.cpp's converter would write for `model`, as far as its size depends on it."""
    layers, name = model.layers, model.name
    first = max(layers, key=lambda layer: layer.caches)
    whole = next((layer for layer in layers if layer.attention is Attention.FULL), first)
    hybrid = name in ("granitehybrid", "lfm2")
    found: dict[str, Any] = {
        "block_count": len(layers),
        "context_length": model.max_context,
        "embedding_length": model.hidden,
        "vocab_size": model.vocabulary,
        "attention.head_count": first.heads,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.layer_norm_epsilon": 1e-6,
        "feed_forward_length": _one_or_all([layer.feed_forward for layer in layers]),
        "attention.head_count_kv": _one_or_all([layer.kv_heads for layer in layers], always=hybrid),
        "attention.key_length": whole.key_width,
        "attention.value_length": whole.value_width,
        "rope.dimension_count": whole.key_width,
        "logit_scale": 1.0,
    }
    if ahead := sum(layer.prediction for layer in layers):
        found["nextn_predict_layers"] = ahead
    sliding = [layer for layer in layers if layer.attention is Attention.SLIDING]
    if sliding:
        found["attention.sliding_window"] = sliding[0].window
        found["attention.sliding_window_pattern"] = [layer.attention is Attention.SLIDING for layer in layers]
        found["attention.key_length_swa"] = sliding[0].key_width
        found["attention.value_length_swa"] = sliding[0].value_width
        found["rope.dimension_count_swa"] = sliding[0].key_width
    if borrowed := sum(not layer.own_cache for layer in layers):
        found["attention.shared_kv_layers"] = borrowed
    if name in ("gemma3n", "gemma4"):
        found["embedding_length_per_layer_input"] = model.per_layer_width
    if first.attention is Attention.LATENT:
        found |= {
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": first.latent,
            "attention.key_length": first.latent + first.rope,
            "attention.value_length": first.latent,
            "attention.key_length_mla": first.key_width,
            "attention.value_length_mla": first.value_width,
            "rope.dimension_count": first.rope,
        }
        if first.query_rank:
            found["attention.q_lora_rank"] = first.query_rank
    state = next((layer.state for layer in layers if layer.state), None)
    if state and state.size:
        found |= {
            "ssm.conv_kernel": state.kernel,
            "ssm.inner_size": state.inner,
            "ssm.state_size": state.size,
            "ssm.group_count": state.groups,
            "ssm.time_step_rank": state.rank,
            "rope.dimension_sections": [8, 8, 8, 0],
        }
        if not hybrid:
            found["attention.recurrent_layers"] = [layer.attention is Attention.RECURRENT for layer in layers]
    elif state:
        found["shortconv.l_cache"] = state.kernel
    sparse = [layer for layer in layers if layer.experts]
    if sparse:
        found |= {
            "expert_count": sparse[0].experts,
            "expert_used_count": sparse[0].experts_used,
            "expert_feed_forward_length": sparse[0].expert_width,
            "leading_dense_block_count": next(i for i, layer in enumerate(layers) if layer.experts),
            "expert_gating_func": 1,
            "expert_weights_scale": 1.0,
        }
        shared = sparse[0].shared
        if name in ("deepseek2", "glm4moe"):
            found["expert_shared_count"] = shared // sparse[0].expert_width
        elif shared:
            found["expert_shared_feed_forward_length"] = shared
        if not any(layer.feed_forward for layer in layers):
            found["feed_forward_length"] = sparse[0].expert_width
    return {"general.architecture": name, "general.name": "virtual"} | {f"{name}.{key}": v for key, v in found.items()}


def _one_or_all(values: list[int], *, always: bool = False) -> int | list[int]:
    return values if always or len(set(values)) > 1 else values[0]


def write(path: Path, model: Architecture, types: Mapping[str, str]) -> int:
    """Write the file and return how many bytes it claims to have; on disk it takes only its header."""
    listed = tensors(model)
    entries = metadata_of(model) | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [f"t{index}" for index in range(model.vocabulary)],
        "tokenizer.ggml.merges": ["t 1"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    header = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(entries)))
    for key, value in entries.items():
        header += _string(key) + _value(value)
    offset = 0
    for tensor in listed:
        shape = tensor.shape
        header += _string(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        header += struct.pack("<IQ", NUMBERS[types[tensor.name]], offset)
        offset += _padded(tensor_bytes(tensor, types[tensor.name]))
    header += bytes(-len(header) % 32)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + offset)
    return len(header) + offset


def _padded(size: int) -> int:
    return -(-size // 32) * 32


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<IB", BOOL, value)
        case int():
            return struct.pack("<II", UINT32, value)
        case float():
            return struct.pack("<If", FLOAT32, value)
        case str():
            return struct.pack("<I", STRING) + _string(value)
        case [str(), *_]:
            return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
        case [bool(), *_]:
            return struct.pack(f"<IIQ{len(value)}B", ARRAY, BOOL, len(value), *value)
        case [int(), *_]:
            return struct.pack(f"<IIQ{len(value)}I", ARRAY, UINT32, len(value), *value)
    raise TypeError(type(value))


def real_bytes(tensor: Tensor, seed: int) -> bytes:
    """Small random numbers in f32, for files that are to be quantized in earnest."""
    import numpy as np

    return np.random.default_rng(seed).standard_normal(tensor.elements, dtype=np.float32).tobytes()
