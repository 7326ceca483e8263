"""Memory against llama.cpp itself, where llama-cpp-python is installed; `benchmarks/memory.py` prints all of it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shapes import shape
from virtual_gguf import NUMBERS, metadata_of, real_bytes, write

from qlangchain.artifacts.headers import read_gguf_header
from qlangchain.selection.architecture import from_config, from_gguf
from qlangchain.selection.memory import Load, need
from qlangchain.selection.tensors import tensors
from qlangchain.selection.weights import file_bytes, file_types, measured, predicted, tensor_bytes

MIB = 1 << 20
ORACLE = Path(__file__).parents[1] / "llama_oracle.py"
needs_llama_cpp = pytest.mark.skipif(
    not importlib.util.find_spec("llama_cpp"), reason="llama-cpp-python is not installed"
)
CASES = [
    ("llama-3.1-8b", "Q4_K_M", Load(context=8192, mmap=False)),
    ("qwen2.5-0.5b", "Q5_K_S", Load(context=4096, slots=8, mmap=False)),
    ("qwen3-30b-a3b", "IQ4_XS", Load(context=32768, kv_key="Q8_0", kv_value="Q8_0", mmap=False)),
    ("gemma-3-4b", "Q6_K", Load(context=65536, mmap=False)),
    ("gpt-oss-20b", "MXFP4", Load(context=16384, mmap=False)),
    ("qwen3.5-4b", "Q3_K_M", Load(context=16384, slots=2, mmap=False)),
    ("deepseek-v2-lite", "Q4_0", Load(context=8192, mmap=False)),
    ("granite-4.0-h-tiny", "Q8_0", Load(context=8192, slots=3, mmap=False)),
]


def ask(request: dict[str, Any]) -> dict[str, Any]:
    shown = subprocess.run(
        [sys.executable, str(ORACLE)], input=json.dumps(request), capture_output=True, text=True, check=False,
        timeout=120, env=dict(os.environ),
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr[-2000:]
    return json.loads(shown.stdout)


@needs_llama_cpp
@pytest.mark.parametrize(("name", "format", "load"), CASES, ids=[case[0] for case in CASES])
def test_llama_cpp_reports_what_was_predicted(name: str, format: str, load: Load, tmp_path: Path) -> None:
    model, path = shape(name), tmp_path / "virtual.gguf"
    write(path, model, file_types(model, format, tensors(model)))
    said = ask(
        {"path": str(path), "context": load.context, "slots": load.slots, "unified": load.unified,
         "ubatch": load.ubatch, "type_k": NUMBERS[load.kv_key], "type_v": NUMBERS[load.kv_value]}
    )  # fmt: skip
    memory = need(model, predicted(model, format), load)
    total = said["weights"] + said["context"] + said["graph"] + said["output"] * MIB
    assert memory.kv == said["context"]
    assert memory.weights == pytest.approx(said["weights"], abs=4096)
    assert abs(memory.engine - total) <= max(64 * MIB, total // 100)


@needs_llama_cpp
def test_a_file_that_is_really_quantized_has_the_predicted_size(tmp_path: Path) -> None:
    """A small model of random weights, quantized in earnest: each tensor has the type and size that was foretold."""
    import ctypes

    import llama_cpp

    config = {
        "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 9, "num_attention_heads": 8,
        "num_key_value_heads": 2, "intermediate_size": 704, "vocab_size": 512, "max_position_embeddings": 512,
    }  # fmt: skip
    model, whole = from_config(config), tmp_path / "whole.gguf"
    size = write(whole, model, {tensor.name: "F32" for tensor in tensors(model)})
    at = size - sum(-(-tensor_bytes(tensor, "F32") // 32) * 32 for tensor in tensors(model))
    with whole.open("r+b") as file:
        for seed, tensor in enumerate(tensors(model)):
            file.seek(at)
            file.write(real_bytes(tensor, seed))
            at += -(-tensor_bytes(tensor, "F32") // 32) * 32
    for format, number in (("Q4_K_M", 15), ("Q5_K_S", 16), ("Q2_K", 10), ("Q4_0", 2), ("IQ4_XS", 30)):
        made = tmp_path / f"{format}.gguf"
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.nthread = number, 1
        assert llama_cpp.llama_model_quantize(bytes(whole), bytes(made), ctypes.byref(options)) == 0
        header = read_gguf_header(made)
        types = file_types(model, format, tensors(model))
        assert {tensor.name: tensor.type for tensor in header.tensors} == types, format
        exact = measured(model, format, [(t.name, t.shape, t.type, t.nbytes) for t in header.tensors])
        assert exact.total == predicted(model, format).total
        assert file_bytes(model, format) == pytest.approx(header.file_size, abs=32768)
        read = from_gguf(header.metadata, tied=model.tied)
        assert [layer.kv_heads for layer in read.layers] == [layer.kv_heads for layer in model.layers]


def test_a_virtual_file_is_well_formed(tmp_path: Path) -> None:
    """Our own reader takes it for what it claims to be, so that llama.cpp's figures are about the right model."""
    model, path = shape("qwen3.5-4b"), tmp_path / "virtual.gguf"
    claimed = write(path, model, file_types(model, "Q4_K_M", tensors(model)))
    header = read_gguf_header(path)
    assert header.file_size == claimed
    assert path.stat().st_blocks * 512 < claimed / 20
    assert {tensor.name for tensor in header.tensors} == {tensor.name for tensor in tensors(model)}
    for key, value in metadata_of(model).items():
        found = header.metadata[key]
        found = list(found) if isinstance(value, list) else found
        assert found == (pytest.approx(value) if isinstance(value, float) else value), key
