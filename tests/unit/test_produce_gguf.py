"""Conversion to GGUF: the bytes, the names, the order of rows, and the metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from unit.tiny_model import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    Make,
    Weights,
    as_bytes,
    metadata_of,
    read_back,
    shard,
)
from unit.tiny_model import make as make  # noqa: PLC0414 - a fixture

from qlangchain.artifacts.headers import check_servable, read_gguf_header
from qlangchain.produce import checkpoint
from qlangchain.produce.gguf import FILE_TYPES, produce_gguf


def quantized(values: Any, kind: str) -> bytes:
    return bytes(quants.quantize(np.ascontiguousarray(values), GGMLQuantizationType[kind]).tobytes())


@pytest.mark.parametrize("format", FILE_TYPES)
def test_the_bytes_are_those_of_gguf_quants(make: Make, tmp_path: Path, format: str) -> None:
    source = make(dtype="BF16")
    found = read_back(produce_gguf(source, tmp_path / "out.gguf", format))
    weights = make.weights  # type: ignore[attr-defined]
    matrix = weights["model.layers.0.mlp.up_proj.weight"]
    assert found["blk.0.ffn_up.weight"] == (format, quantized(matrix, format))
    logits = format if format in ("F32", "F16", "BF16") else "Q8_0"
    assert found["output.weight"] == (logits, quantized(weights["lm_head.weight"], logits))
    embeddings = weights["model.embed_tokens.weight"]
    assert found["token_embd.weight"] == (format, quantized(embeddings, format))
    assert found["output_norm.weight"] == ("F32", weights["model.norm.weight"].tobytes())
    header = read_gguf_header(tmp_path / "out.gguf")
    check_servable(header)
    assert header.metadata["general.file_type"] == FILE_TYPES[format]
    assert header.metadata["general.name"] == "Tiny"
    assert header.get("rope.dimension_count") == HEAD_DIM
    if format == "BF16":  # copied bit by bit
        assert found["blk.0.ffn_up.weight"][1] == as_bytes(matrix, "BF16")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_chunks_do_not_show(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    source = make(dtype=dtype, attention_bias=True)
    whole = produce_gguf(source, tmp_path / "whole.gguf", "q4_0").read_bytes()
    for values in (1, 1000, 70 * HIDDEN):
        monkeypatch.setattr(checkpoint, "CHUNK_VALUES", values)
        assert produce_gguf(source, tmp_path / "chunks.gguf", "Q4_0").read_bytes() == whole


def test_llama_s_rotary_pairs_become_neighbours_and_qwen_s_stay(make: Make, tmp_path: Path) -> None:
    for architecture in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        changes = {"head_dim": HEAD_DIM} if "Qwen3" in architecture else {}
        source = make(architectures=[architecture], attention_bias=architecture == "LlamaForCausalLM", **changes)
        found = read_back(produce_gguf(source, tmp_path / "out.gguf", "F32"))
        weights = make.weights  # type: ignore[attr-defined]
        for part, heads in (("q", HEADS), ("k", KV_HEADS)):
            for suffix in ("weight", "bias"):
                values = weights.get(f"model.layers.0.self_attn.{part}_proj.{suffix}")
                if values is None:
                    continue
                if "Qwen" not in architecture:  # row 2i of a head was row i, row 2i + 1 was row i + half
                    order = [
                        head * HEAD_DIM + half * HEAD_DIM // 2 + i
                        for head in range(heads)
                        for i in range(HEAD_DIM // 2)
                        for half in (0, 1)
                    ]
                    values = values[order]
                assert found[f"blk.0.attn_{part}.{suffix}"][1] == values.tobytes()
        value = weights["model.layers.0.self_attn.v_proj.weight"]
        assert found["blk.0.attn_v.weight"][1] == value.tobytes()
        assert ("blk.0.attn_q_norm.weight" in found) == ("Qwen3" in architecture)
        assert ("blk.0.attn_v.bias" in found) == (architecture in ("LlamaForCausalLM", "Qwen2ForCausalLM"))


def test_tied_embeddings_make_the_logits(make: Make, tmp_path: Path) -> None:
    source = make(tie_word_embeddings=True)
    found = read_back(produce_gguf(source, tmp_path / "out.gguf", "Q4_0"))
    assert "output.weight" not in found
    assert found["token_embd.weight"][0] == "Q8_0"

    def copy_the_head(weights: Weights) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]

    again = produce_gguf(make(tie_word_embeddings=True, change=copy_the_head), tmp_path / "again.gguf", "Q4_0")
    assert again.read_bytes() == (tmp_path / "out.gguf").read_bytes()


def test_columns_that_do_not_divide_stay_f16(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def narrow(weights: Weights) -> None:
        name = "model.layers.0.mlp.{}_proj.weight"
        for part, shape in (("gate", (90, HIDDEN)), ("up", (90, HIDDEN)), ("down", (HIDDEN, 90))):
            weights[name.format(part)] = np.ones(shape, np.float32)

    source = make(intermediate_size=90, change=narrow)
    found = read_back(produce_gguf(source, tmp_path / "out.gguf", "Q8_0"))
    assert found["blk.0.ffn_down.weight"][0] == "F16"
    assert found["blk.0.ffn_up.weight"][0] == "Q8_0"
    assert "blk.0.ffn_down.weight stays F16: its 90 columns do not divide by 32" in caplog.text


def test_shards_give_the_same_bytes(make: Make, tmp_path: Path) -> None:
    source = make()
    whole = produce_gguf(source, tmp_path / "whole.gguf", "Q5_1").read_bytes()
    shard(source)
    assert produce_gguf(source, tmp_path / "shards.gguf", "Q5_1").read_bytes() == whole


def test_rope_scaling(make: Make, tmp_path: Path) -> None:
    linear = metadata_of(make, tmp_path, rope_scaling={"type": "linear", "factor": 4.0})
    assert (linear["llama.rope.scaling.type"], linear["llama.rope.scaling.factor"]) == ("linear", 4.0)
    yarn = metadata_of(
        make, tmp_path, rope_theta=None,
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5, "attention_factor": 2.0,
                         "original_max_position_embeddings": 32, "beta_fast": 32},
    )  # fmt: skip
    assert yarn["llama.rope.freq_base"] == 5e5
    assert yarn["llama.rope.scaling.original_context_length"] == 32
    assert yarn["llama.rope.scaling.attn_factor"] == pytest.approx(2.0 / (0.1 * np.log(4.0) + 1))
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    llama3 = metadata_of(make, tmp_path, rope_scaling=scaling)
    assert not any("scaling" in key for key in llama3)
    kind, raw = read_back(tmp_path / "out.gguf")["rope_freqs.weight"]
    factors = np.frombuffer(raw, np.float32)
    assert (kind, len(factors)) == ("F32", HEAD_DIM // 2)
    assert (factors[0], factors[-1]) == (1.0, 8.0)


def test_a_sliding_window_is_announced(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metadata_of(make, tmp_path, architectures=["MistralForCausalLM"], sliding_window=64)
    assert "sliding window of 64 tokens" in caplog.text
    caplog.clear()
    metadata_of(make, tmp_path, sliding_window=64, use_sliding_window=False)
    assert not caplog.text


def test_a_head_size_of_its_own(make: Make, tmp_path: Path) -> None:
    metadata = metadata_of(make, tmp_path, architectures=["Qwen3ForCausalLM"], head_dim=32)
    assert metadata["qwen3.attention.key_length"] == metadata["qwen3.attention.value_length"] == 32
