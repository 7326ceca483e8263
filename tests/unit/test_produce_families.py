"""The families beside llama and qwen: what GGUF says of them, and what llama.cpp cannot follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unit.tiny_model import CONFIG, HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS, TOKENIZER, VOCAB, read_back
from unit.tiny_model import write_safetensors as write

from qlangchain.artifacts.headers import check_servable, read_gguf_header
from qlangchain.errors import CorruptFileError, ProductionError, UnsupportedModelError
from qlangchain.produce import gguf_check, kquants
from qlangchain.produce.families import families
from qlangchain.produce.gguf import plan_gguf, produce_gguf
from qlangchain.produce.model_config import read_config

GEMMA = {
    "architectures": ["Gemma3ForCausalLM"], "hidden_act": None, "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": HEAD_DIM, "query_pre_attn_scalar": HEAD_DIM, "tie_word_embeddings": None, "sliding_window": 32,
    "rope_theta": None,
}  # fmt: skip
LONG = {"type": "longrope", "short_factor": [1.5] * (HEAD_DIM // 2), "long_factor": [4.0] * (HEAD_DIM // 2)}
PHI = {"architectures": ["Phi3ForCausalLM"], "original_max_position_embeddings": 64}


def make(directory: Path, prefix: str = "", **config: Any) -> Path:
    """A directory of random weights of the families' shapes, one block."""
    whole = {key: value for key, value in (CONFIG | config).items() if value is not None}
    name = whole["architectures"][0]
    family = families()[name]
    head = whole.get("head_dim", HEAD_DIM)
    sizes = {
        "hidden": HIDDEN, "inner": INNER, "doubled": 2 * INNER, "queries": HEADS * head, "keys": KV_HEADS * head,
        "fused": (HEADS + 2 * KV_HEADS) * head,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for part, rows, columns in family.linears.values():
        shapes[f"model.layers.0.{part}.weight"] = (sizes[rows], sizes[columns])
    for norm in family.norms.values():
        shapes[f"model.layers.0.{norm}.weight"] = (HIDDEN,)
    if family.head_norms:
        shapes |= {f"model.layers.0.self_attn.{one}_norm.weight": (head,) for one in "qk"}
    if not whole.get("tie_word_embeddings", family.tied):
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    random = np.random.default_rng(5)
    weights = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    if prefix:
        weights = {name.replace("model.", prefix, 1): values for name, values in weights.items()}
        weights["vision_tower.patch.weight"] = np.ones((2, 3, 4, 4), np.float32)
    directory.mkdir(exist_ok=True)
    write(directory / "model.safetensors", weights)
    (directory / "config.json").write_text(json.dumps(whole))
    (directory / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return directory


def metadata(directory: Path, **config: Any) -> Any:
    path = produce_gguf(make(directory / "m", **config), directory / "out.gguf", "F32")
    header = read_gguf_header(path)
    check_servable(header)
    return header.metadata


def test_gemma_3(tmp_path: Path) -> None:
    found = metadata(tmp_path, **GEMMA, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert found["general.architecture"] == "gemma3"
    assert found["gemma3.attention.sliding_window"] == 32
    assert found["gemma3.rope.freq_base"] == 1e6  # the class's own defaults
    assert found["gemma3.rope.freq_base_swa"] == 1e4
    assert (found["gemma3.rope.scaling.type"], found["gemma3.rope.scaling.factor"]) == ("linear", 8.0)
    assert "gemma3.attention.sliding_window_pattern" not in found  # five with a window and one without
    assert "output.weight" not in read_back(tmp_path / "out.gguf")


def test_norms_are_written_as_llama_cpp_multiplies(tmp_path: Path) -> None:
    source = make(tmp_path / "m", **GEMMA)
    found = read_back(produce_gguf(source, tmp_path / "out.gguf", "Q8_0"))
    content = (source / "model.safetensors").read_bytes()
    for name in ("model.norm.weight", "model.layers.0.self_attn.q_norm.weight"):
        from qlangchain.artifacts.headers import read_safetensors_header

        tensor = read_safetensors_header(source / "model.safetensors").tensors[name]
        stored = np.frombuffer(content, "<f4", tensor.shape[0], tensor.offset)
        ours = {"model.norm.weight": "output_norm.weight"}.get(name, "blk.0.attn_q_norm.weight")
        np.testing.assert_array_equal(np.frombuffer(found[ours][1], "<f4"), stored + 1)


def test_windows_in_other_layers_are_listed(tmp_path: Path) -> None:
    every = metadata(tmp_path, **GEMMA | {"layer_types": ["full_attention"]})
    assert "gemma3.attention.sliding_window" not in every
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config |= {"num_hidden_layers": 4, "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path / "m").windows == (True, True, False, False)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_model_of_one_that_sees(tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    text = {key: value for key, value in (CONFIG | GEMMA).items() if key != "architectures" and value is not None}
    whole = make(tmp_path / "m", prefix, **GEMMA)
    (whole / "config.json").write_text(
        json.dumps({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "eos_token_id": 257})
    )
    seen = produce_gguf(whole, tmp_path / "seen.gguf", "F32", name="x")
    assert "its eyes are left out" in caplog.text
    plain = produce_gguf(make(tmp_path / "plain", **GEMMA), tmp_path / "plain.gguf", "F32", name="x")
    assert read_back(seen) == read_back(plain)
    assert kquants._whole(whole, None).format == "F32"  # what llama.cpp's quantizer is given


def test_phi_3_with_factors_for_long_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = metadata(tmp_path, **PHI, rope_scaling=LONG, sliding_window=100)
    assert found["phi3.attention.sliding_window"] == 100
    assert found["phi3.rope.scaling.original_context_length"] == 64
    assert found["phi3.rope.scaling.attn_factor"] == pytest.approx(np.sqrt(1 + np.log(2) / np.log(64)))
    tensors = read_back(tmp_path / "out.gguf")
    assert np.frombuffer(tensors["rope_factors_long.weight"][1], "<f4").tolist() == [4.0] * (HEAD_DIM // 2)
    assert {"blk.0.attn_qkv.weight", "blk.0.ffn_up.weight"} <= tensors.keys()
    assert "sliding window of 100" in caplog.text and "from a context of 64 tokens on" in caplog.text


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        (GEMMA | {"query_pre_attn_scalar": 99}, UnsupportedModelError, "query_pre_attn_scalar is 99"),
        (GEMMA | {"attn_logit_softcapping": 50.0}, UnsupportedModelError, "attn_logit_softcapping is 50"),
        (GEMMA | {"use_bidirectional_attention": True}, UnsupportedModelError, "tokens that follow"),
        (GEMMA | {"hidden_activation": "relu"}, UnsupportedModelError, "'relu'"),
        (GEMMA | {"sliding_window": 0}, CorruptFileError, "sliding_window = 0"),
        (GEMMA | {"layer_types": ["chunked_attention"]}, UnsupportedModelError, "layer_types"),
        (
            GEMMA | {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            UnsupportedModelError, "layers with a window have a rope scaling",
        ),
        (
            GEMMA | {"architectures": ["Gemma2ForCausalLM"], "final_logit_softcapping": None, "sliding_window": None,
                     "layer_types": ["full_attention"]},
            UnsupportedModelError, "needs a layer with a sliding window",
        ),
        (
            GEMMA | {"architectures": ["GemmaForCausalLM"], "tie_word_embeddings": False},
            UnsupportedModelError, "ties the logits",
        ),
        (PHI | {"rope_scaling": LONG | {"long_factor": [1.0]}}, CorruptFileError, "8 numbers as long_factor"),
        (PHI | {"rope_scaling": {"type": "linear", "factor": 2.0}}, UnsupportedModelError, "'linear'"),
        (PHI | {"head_dim": 32}, UnsupportedModelError, "phi3 of 4 heads of 32"),
        (
            {"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [0]}, UnsupportedModelError,
            "each 4th layer",
        ),
        ({"architectures": ["Qwen2ForCausalLM"], "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
         UnsupportedModelError, "'llama3'"),
    ],
)  # fmt: skip
def test_what_llama_cpp_cannot_follow(tmp_path: Path, config: dict[str, Any], error: type, words: str) -> None:
    source = make(tmp_path / "m", **config)
    with pytest.raises(error, match=words) as caught:
        produce_gguf(source, tmp_path / "out.gguf", "F16")
    assert caught.value.hint


def test_a_file_of_another_model_is_told(tmp_path: Path) -> None:
    """A norm without its offset, and rows in another order: both look right from outside."""
    source = make(tmp_path / "m", **GEMMA)
    path = produce_gguf(source, tmp_path / "out.gguf", "Q8_0")
    plan = plan_gguf(source, "F32")
    gguf_check.check_errors(path, plan)
    header = read_gguf_header(path)
    content = bytearray(path.read_bytes())
    for name, words in (("output_norm.weight", "output_norm"), ("blk.0.ffn_up.weight", r"ffn_up.*Q8_0")):
        tensor = next(one for one in header.tensors if one.name == name)
        damaged = bytearray(content)
        whole = slice(tensor.offset, tensor.offset + tensor.nbytes)
        if name == "output_norm.weight":
            damaged[whole] = (np.frombuffer(content[whole], "<f4") - 1).tobytes()
        else:
            row = tensor.nbytes // tensor.shape[1]
            damaged[whole] = content[whole][row:] + content[whole][:row]
        path.write_bytes(damaged)
        with pytest.raises(ProductionError, match=words):
            gguf_check.check_errors(path, plan)
