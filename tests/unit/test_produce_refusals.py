"""What cannot be converted is refused with one of our errors, and nothing is guessed or dropped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.tiny_model import (
    CONFIG,
    HEAD_DIM,
    TOKENIZER,
    Make,
    Weights,
    shard,
    template,
)
from unit.tiny_model import make as make  # noqa: PLC0414 - a fixture

from qlangchain.artifacts.headers import check_servable, read_gguf_header
from qlangchain.errors import (
    CorruptFileError,
    InvalidInputError,
    ModelNotFoundError,
    NoWeightsError,
    ProductionError,
    QlangchainError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from qlangchain.produce import checkpoint
from qlangchain.produce.gguf import produce_gguf

HOSTILE = ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", "..\\x.safetensors",
           "C:x.safetensors", ".safetensors", "x.safetensors\0", "~x.safetensors", "x.bin", "", "x.safetensors\n",
           "..", "-rf.safetensors", "％2e.safetensors", 5, None]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_cannot_name_files_elsewhere(make: Make, tmp_path: Path, name: Any) -> None:
    source = make()
    shard(source, {"model.norm.weight": name})
    with pytest.raises(UnsafeWeightsError, match="no plain name"):
        produce_gguf(source, tmp_path / "out.gguf", "F16")


def test_incomplete_shards(make: Make, tmp_path: Path) -> None:
    source = make()
    found = shard(source)
    second = source / "model-00002-of-00002.safetensors"
    (source / checkpoint.INDEX).write_text(json.dumps({"weight_map": found | {"x": second.name}}))
    with pytest.raises(CorruptFileError, match=r"model-00002-of-00002.safetensors does not hold x"):
        produce_gguf(source, tmp_path / "out.gguf", "F16")
    second.unlink()
    with pytest.raises(CorruptFileError, match=r"1 of the 2 files .* are missing: model-00002-of-00002.safetensors"):
        produce_gguf(source, tmp_path / "out.gguf", "F16")
    (source / checkpoint.INDEX).unlink()
    shutil.copy(source / "model-00001-of-00002.safetensors", source / "other.safetensors")
    with pytest.raises(CorruptFileError, match=r"and no model\.safetensors\.index\.json"):
        produce_gguf(source, tmp_path / "out.gguf", "F16")


ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


REFUSALS: list[tuple[dict[str, Any], type[QlangchainError], str]] = [
    ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModelError, r"already quantized \(gptq\)"),
    ({"auto_map": {"AutoModel": "modeling.X"}}, UnsafeWeightsError, "auto_map"),
    ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}, UnsupportedModelError, "mixture of 8 experts"),
    ({"architectures": ["OlmoForCausalLM"]}, UnsupportedModelError, "Known: LlamaForCausalLM"),
    ({"architectures": None, "model_type": "bert"}, UnsupportedModelError, "'bert' is not known"),
    ({"hidden_act": "gelu"}, UnsupportedModelError, "activation 'gelu'"),
    ({"partial_rotary_factor": 0.5}, UnsupportedModelError, "full rotary"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, UnsupportedModelError, "'dynamic'"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 16}}, UnsupportedModelError, "'yarn'"),
    ({"rope_scaling": {"type": "linear"}}, CorruptFileError, "linear has no factor"),
    ({"rope_scaling": {"type": "linear", "factor": -1}}, CorruptFileError, "factor = -1"),
    ({"hidden_size": None}, CorruptFileError, "hidden_size = None"),
    ({"hidden_size": True}, CorruptFileError, "hidden_size = True"),
    ({"num_hidden_layers": 2000}, CorruptFileError, "expected a whole number from 1 to 512"),
    ({"num_hidden_layers": 2}, CorruptFileError, "hold no model.layers.1.input_layernorm.weight"),
    ({"num_key_value_heads": 3}, CorruptFileError, "3 key-value heads"),
    ({"rms_norm_eps": 0}, CorruptFileError, "rms_norm_eps = 0"),
    ({"vocab_size": 290}, CorruptFileError, r"has the shape \[300, 64\]; config.json says \[290, 64\]"),
    (
        {"attention_bias": True, "architectures": ["Qwen3ForCausalLM"], "head_dim": HEAD_DIM},
        UnsupportedModelError, "no model.layers.0.self_attn",
    ),
    ({"rope_scaling": "linear"}, CorruptFileError, "not a table"),
    ({"rope_theta": 1e300}, CorruptFileError, "rope_theta"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "words"), REFUSALS)
def test_models_that_cannot_be_converted(
    make: Make, tmp_path: Path, changes: dict[str, Any], error: type[QlangchainError], words: str
) -> None:
    if changes.keys() & {"vocab_size", "num_key_value_heads", "hidden_size"}:  # the weights stay as they were
        source = make()
        config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
        (source / "config.json").write_text(json.dumps(config))
    else:
        source = make(**changes)
    with pytest.raises(error, match=words) as caught:
        produce_gguf(source, tmp_path / "out.gguf", "F16")
    assert caught.value.hint
    assert not (tmp_path / "out.gguf").exists()


def test_directories_that_hold_no_model(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(ModelNotFoundError):
        produce_gguf(tmp_path / "none", out, "F16")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NoWeightsError):
        produce_gguf(empty, out, "F16")
    (empty / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(UnsafeWeightsError, match=r"pytorch_model\.bin"):
        produce_gguf(empty, out, "F16")
    (empty / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="LoRA"):
        produce_gguf(empty, out, "F16")
    source = make()
    with pytest.raises(InvalidInputError, match="is a file"):
        produce_gguf(source / "config.json", out, "F16")
    with pytest.raises(InvalidInputError, match="is a directory"):
        produce_gguf(source, empty, "F16")
    with pytest.raises(InvalidInputError, match=r"F32.*Q4_K_M"):
        produce_gguf(source, out, "Q9_9")
    for name, content in (("tokenizer.json", None), ("config.json", "{"), ("config.json", "[]")):
        source = make()
        (source / name).unlink()
        if content is not None:
            (source / name).write_text(content)
        with pytest.raises(CorruptFileError if content else ModelNotFoundError, match=name):
            produce_gguf(source, out, "F16")
    (source := make()).joinpath("model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match="truncated"):
        produce_gguf(source, out, "F16")


def set_value(value: float) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        weights["model.layers.0.mlp.up_proj.weight"][5, 5] = value

    return change


def test_values_that_a_format_cannot_hold(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    for value in (np.nan, np.inf):
        with pytest.raises(CorruptFileError, match="up_proj"):
            produce_gguf(make(change=set_value(value)), out, "Q8_0")
    with pytest.raises(ProductionError, match="65,504"):
        produce_gguf(make(change=set_value(1e6)), out, "F16")
    produce_gguf(make(change=set_value(1e6)), out, "BF16")


def test_enormous_numbers_are_checked_without_overflow(make: Make, tmp_path: Path) -> None:
    """Squares of float32 overflow from 1.8e19 on, which the check of a file's error must not."""
    out = tmp_path / "out.gguf"
    produce_gguf(make(rope_scaling=ROPE | {"factor": 2.0**70}), out, "Q8_0")
    check_servable(read_gguf_header(out))
    produce_gguf(make(change=set_value(1e25)), out, "F32")


def test_unknown_tensors_and_types_are_not_dropped(make: Make, tmp_path: Path) -> None:
    def add(weights: Weights) -> None:
        weights["model.vision.weight"] = np.ones((2, 2), np.float32)

    with pytest.raises(UnsupportedModelError, match=r"no model\.vision\.weight"):
        produce_gguf(make(change=add), tmp_path / "out.gguf", "F16")

    def computed(weights: Weights) -> None:
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)

    produce_gguf(make(change=computed), tmp_path / "out.gguf", "F16")
    source = make()
    content = (source / "model.safetensors").read_bytes().replace(b'"F32"', b'"I32"')
    (source / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedModelError, match="is I32"):
        produce_gguf(source, tmp_path / "out.gguf", "F16")


JUNK: list[Any] = [None, True, -1, 0, 2**70, 1e308, "", "x", "\ud800", [], [[]], {}, {"type": "Sequence"}, [None] * 3]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_junk_anywhere_in_the_json_is_an_error_of_ours(make: Make, tmp_path: Path, data: st.DataObject) -> None:
    source = make(tokenizer=TOKENIZER | {"post_processor": template("<|endoftext|>", "A")}, rope_scaling=ROPE)
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "x"}, "chat_template": "y"}))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 258]}))
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    path = source / data.draw(st.sampled_from(names))
    whole: Any = [json.loads(path.read_text())]
    node, key = whole, 0
    while isinstance(node[key], dict | list) and node[key] and (node is whole or data.draw(st.booleans())):
        node = node[key]
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
    node[key] = data.draw(st.sampled_from(JUNK))
    path.write_text(json.dumps(whole[0]))
    try:
        produce_gguf(source, tmp_path / "out.gguf", "Q8_0")
    except QlangchainError as error:
        assert error.message and error.hint  # noqa: PT017 - both outcomes are right
    else:
        check_servable(read_gguf_header(tmp_path / "out.gguf"))
