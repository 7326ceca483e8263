"""Small models of every architecture that can be quantized, and directories compared tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlangchain.artifacts.source import DEMO_DIRECTORY

VOCAB = 4096  # the demo model's tokenizer
BASE = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GEMMA = {"query_pre_attn_scalar": 16, "sliding_window": 32}
# class -> what its config has of its own
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": 32},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {},
    "SmolLM3ForCausalLM": {},
    "GemmaForCausalLM": {},
    "Gemma2ForCausalLM": GEMMA,
    "Gemma3ForCausalLM": {**GEMMA, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    "Phi3ForCausalLM": {"head_dim": None},
}
TEXTS = ["The quick brown fox jumps over the lazy dog, and 17 x 3 = 51. " * 40, "什么是量化？" * 60]
QUICK: dict[str, Any] = {"group_size": 32, "texts": TEXTS, "samples": 6, "sequence_length": 32}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Torch's threads wait for each other by spinning, which takes ten times as long where cores are shared."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(directory: Path, family: str = "LlamaForCausalLM", *, dtype: str = "bfloat16", **changes: Any) -> Path:
    """Write a model of random weights, with norms and biases that are not trivial, and the demo's tokenizer."""
    import torch
    import transformers

    settings = {key: value for key, value in (BASE | FAMILIES[family] | changes).items() if value is not None}
    model_class: Any = getattr(transformers, family)
    torch.manual_seed(3)
    model = model_class(model_class.config_class(**settings))
    for name, parameter in model.named_parameters():
        wide = 0.3 if "norm" in name or "bias" in name else 0.08
        parameter.data += torch.randn_like(parameter) * wide
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_DIRECTORY / name, directory / name)
    return directory


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; "a.b" goes one level down, None removes."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *outer, last = key.split("__")
        table = content
        for name in outer:
            table = table[name]
        if value is None:
            table.pop(last, None)
        else:
            table[last] = value
    path.write_text(json.dumps(content))


def tensors_of(directory: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a directory, whatever files they lie in."""
    from qlangchain.artifacts.headers import read_safetensors_header

    found = {}
    for path in directory.glob("*.safetensors"):
        content = path.read_bytes()
        for tensor in read_safetensors_header(path).tensors.values():
            found[tensor.name] = content[tensor.offset : tensor.offset + tensor.nbytes]
    return found
