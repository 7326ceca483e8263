"""A model of a few thousand weights, written by hand, for the tests of what is made from it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlangchain.artifacts.headers import read_gguf_header
from qlangchain.produce import checkpoint
from qlangchain.produce.gguf import produce_gguf

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 64, 96, 4, 2, 16, 300


QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "eos_token_id": 257,
}  # fmt: skip


MARKS = ["<|endoftext|>", "<|im_end|>", "<tool_call>"]


TOKENIZER: dict[str, Any] = {
    "added_tokens": [{"id": 256 + n, "content": mark, "special": n < 2} for n, mark in enumerate(MARKS)],
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        ],
    },
    "post_processor": None,
    "model": {"type": "BPE", "vocab": {chr(300 + n): n for n in range(255)} | {"ab": 255}, "merges": ["a b"]},
}


Weights = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


Make = Callable[..., Path]


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    head_dim = config.get("head_dim", HEAD_DIM)
    layer = "model.layers.0."
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        layer + "input_layernorm.weight": (HIDDEN,),
        layer + "post_attention_layernorm.weight": (HIDDEN,),
        layer + "self_attn.q_proj.weight": (HEADS * head_dim, HIDDEN),
        layer + "self_attn.k_proj.weight": (KV_HEADS * head_dim, HIDDEN),
        layer + "self_attn.v_proj.weight": (KV_HEADS * head_dim, HIDDEN),
        layer + "self_attn.o_proj.weight": (HIDDEN, HEADS * head_dim),
        layer + "mlp.gate_proj.weight": (INNER, HIDDEN),
        layer + "mlp.up_proj.weight": (INNER, HIDDEN),
        layer + "mlp.down_proj.weight": (HIDDEN, INNER),
    }
    if not config.get("tie_word_embeddings"):
        found["lm_head.weight"] = (VOCAB, HIDDEN)
    if config.get("architectures") == ["Qwen2ForCausalLM"] or config.get("attention_bias"):
        found |= {f"{layer}self_attn.{x}_proj.bias": (found[f"{layer}self_attn.{x}_proj.weight"][0],) for x in "qkv"}
    if config.get("architectures") == ["Qwen3ForCausalLM"]:
        found |= {f"{layer}self_attn.{x}_norm.weight": (head_dim,) for x in "qk"}
    return found


def as_bytes(values: Any, dtype: str) -> bytes:
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}.get(dtype, "<f4")).tobytes()


def write_safetensors(path: Path, weights: Weights, dtype: str = "F32") -> None:
    entries, blobs, at = {}, [], 0
    for name, values in weights.items():
        blob = as_bytes(values, dtype)
        entries[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"".join(blobs))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a model directory; returns it. `weights` of the last one are in `make.weights`."""

    def make(
        *, dtype: str = "F32", tokenizer: dict[str, Any] | None = None, change: Callable[[Weights], None] | None = None,
        **config: Any,
    ) -> Path:  # fmt: skip
        source = tmp_path / "Tiny"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        full = {key: value for key, value in (CONFIG | config).items() if value is not None}
        random = np.random.default_rng(3)
        weights = {name: random.standard_normal(shape, np.float32) for name, shape in shapes(full).items()}
        if dtype != "F32":  # values that the type can hold exactly, so that the comparisons are exact
            weights = {name: (v.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, v in weights.items()}
        if change:
            change(weights)
        write_safetensors(source / "model.safetensors", weights, dtype)
        (source / "config.json").write_text(json.dumps(full))
        (source / "tokenizer.json").write_text(json.dumps(tokenizer or TOKENIZER))
        make.weights = weights  # type: ignore[attr-defined]
        return source

    return make


def read_back(path: Path) -> dict[str, tuple[str, bytes]]:
    header = read_gguf_header(path)
    content = path.read_bytes()
    return {t.name: (t.type, content[t.offset : t.offset + t.nbytes]) for t in header.tensors}


def shard(source: Path, weight_map: dict[str, str] | None = None) -> dict[str, str]:
    """Cut model.safetensors into two files with an index."""
    from qlangchain.artifacts.headers import read_safetensors_header

    whole = source / "model.safetensors"
    header, content = read_safetensors_header(whole), whole.read_bytes()
    names = list(header.tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        tensors = {
            name: np.frombuffer(content, "<f4", int(np.prod(t.shape)), t.offset).reshape(t.shape)
            for name, t in header.tensors.items()
            if name in part
        }
        write_safetensors(source / file, tensors)
    whole.unlink()
    found = {name: file for file, part in files.items() for name in part}
    (source / checkpoint.INDEX).write_text(json.dumps({"weight_map": found if weight_map is None else weight_map}))
    return found


def nothing_else(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def metadata_of(make: Make, tmp_path: Path, **changes: Any) -> Any:
    return read_gguf_header(produce_gguf(make(**changes), tmp_path / "out.gguf", "F16")).metadata


def template(*names: str) -> dict[str, Any]:
    def piece(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": "A", "type_id": 0}} if name == "A" else {"SpecialToken": {"id": name, "type_id": 0}}

    return {"type": "TemplateProcessing", "single": [piece(name) for name in names]}
