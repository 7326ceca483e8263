"""From config.json and from GGUF metadata to the same architecture; and what neither accepts."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import CONFIGS, shape
from virtual_gguf import metadata_of

from qlangchain.errors import UnsupportedModelError
from qlangchain.selection import architecture
from qlangchain.selection.architecture import Attention, from_config, from_gguf
from qlangchain.selection.families import by_model_type, families
from qlangchain.selection.kv_cache import Load, kv_bytes
from qlangchain.selection.memory import need, past_prompts, split
from qlangchain.selection.tensors import tensors
from qlangchain.selection.weights import predicted

LLAMA = CONFIGS["llama-3.1-8b"]


@pytest.mark.parametrize("name", CONFIGS)
def test_both_ways_lead_to_the_same_architecture(name: str) -> None:
    model = shape(name)
    read = from_gguf(metadata_of(model), tied=model.tied)
    assert read.assumed == model.assumed == ""
    assert kv_bytes(read, Load(context=65536, slots=2)) == kv_bytes(model, Load(context=65536, slots=2))
    assert {t.name: t.shape for t in tensors(replace(read, traits=model.traits))} == {
        t.name: t.shape for t in tensors(model) if "attn_v." not in t.name or _has_values(model, t.layer)
    } | {t.name: t.shape for t in tensors(read) if "attn_v.weight" in t.name}
    assert (read.hidden, read.vocabulary, read.max_context, read.name) == (
        model.hidden, model.vocabulary, model.max_context, model.name,
    )  # fmt: skip


def _has_values(model: architecture.Architecture, index: int) -> bool:
    return model.layers[index].values


def test_equal_layers_are_one_object() -> None:
    assert len({id(layer) for layer in shape("llama-3.1-8b").layers}) == 1
    assert len({id(layer) for layer in shape("gemma-3-4b").layers}) == 2


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("gemma-2-9b", {Attention.SLIDING: 21, Attention.FULL: 21}),
        ("gemma-3-4b", {Attention.SLIDING: 29, Attention.FULL: 5}),
        ("gemma-4-e2b", {Attention.SLIDING: 28, Attention.FULL: 7}),
        ("gpt-oss-20b", {Attention.SLIDING: 12, Attention.FULL: 12}),
        ("gpt-oss-120b", {Attention.SLIDING: 18, Attention.FULL: 18}),  # without layer_types
        ("qwen3.5-4b", {Attention.RECURRENT: 24, Attention.FULL: 9}),  # one of them predicts
        ("granite-4.0-h-tiny", {Attention.RECURRENT: 36, Attention.FULL: 4}),
        ("deepseek-v3", {Attention.LATENT: 61}),
        ("qwen2.5-0.5b", {Attention.FULL: 24}),  # use_sliding_window is false
        ("phi-4-mini", {Attention.FULL: 32}),  # llama.cpp ignores Phi's window
    ],
)
def test_how_layers_attend(name: str, kinds: dict[Attention, int]) -> None:
    found = [layer.attention for layer in shape(name).layers]
    assert {kind: found.count(kind) for kind in set(found)} == kinds


def test_experts_of_each_kind() -> None:
    deepseek = shape("deepseek-v3").layers
    assert [bool(layer.experts) for layer in deepseek[:5]] == [False, False, False, True, True]
    assert (deepseek[3].experts, deepseek[3].experts_used, deepseek[3].shared) == (256, 8, 2048)
    mixtral = shape("mixtral-8x7b").layers[0]
    assert (mixtral.experts, mixtral.experts_used, mixtral.expert_width, mixtral.feed_forward) == (8, 2, 14336, 0)
    assert shape("granite-4.0-h-tiny").layers[0].shared == 1024


def test_null_is_as_good_as_missing() -> None:
    plain = {**LLAMA, "head_dim": None, "num_local_experts": None, "layer_types": None, "sliding_window": None}
    assert from_config(plain) == from_config(LLAMA)


def test_the_language_model_inside_is_described() -> None:
    inner = {**LLAMA, "model_type": "qwen3"}
    outer = {"model_type": "some_vl", "vision_config": {"hidden_size": 99}, "text_config": inner, "hidden_size": 1}
    assert from_config(outer) == from_config(inner)
    untied = {k: v for k, v in inner.items() if k not in ("tie_word_embeddings", "model_type")}
    nested = {"model_type": "gemma3", "tie_word_embeddings": True, "text_config": untied}
    assert from_config(nested).name == "gemma3"
    assert from_config(nested).tied


@pytest.mark.parametrize("family", families())
def test_defaults_of_tied_embeddings(family: str) -> None:
    row = families()[family]
    config = {k: v for k, v in LLAMA.items() if k != "tie_word_embeddings"} | {"model_type": row.model_types[0]}
    assert from_config(config).tied == row.tied


def test_an_unknown_family_is_taken_for_an_ordinary_one_and_says_so() -> None:
    model = from_config({**LLAMA, "model_type": "newcomer"})
    assert "newcomer" in model.assumed
    assert not model.traits.exact
    assert kv_bytes(model, Load(context=8192)) == 1 << 30
    metadata = {key.replace("llama.", "newcomer."): value for key, value in metadata_of(from_config(LLAMA)).items()}
    read = from_gguf(metadata | {"general.architecture": "newcomer"})
    assert "newcomer" in read.assumed
    assert kv_bytes(read, Load(context=8192)) == 1 << 30


@pytest.mark.parametrize(
    ("name", "count", "kv_heads", "given", "slots", "mib"),
    [
        # Jamba: two of 28 layers attend. Falcon-H1: every layer does both.
        ("jamba", 28, [int(index in (7, 21)) for index in range(28)], (4, 5120, 16, 0, 160), 8, 16 + 77),
        ("falcon-h1", 44, 2, (4, 3072, 256, 1, 24), 1, 88 + 134),
        ("mamba2", 64, 0, (4, 5120, 128, 1, 80), 8, 1312),
    ],
)
def test_states_of_an_unknown_family_are_counted(
    name: str, count: int, kv_heads: int | list[int], given: tuple[int, ...], slots: int, mib: int
) -> None:
    """The cache and the states of 2,048 tokens to a request, in f16, as xllamacpp 2026.10 reports them."""
    heads = 0 if kv_heads == 0 else 12
    metadata = {
        "block_count": count, "embedding_length": 12 * 128, "attention.head_count": heads, "vocab_size": 1000,
        "attention.head_count_kv": kv_heads, "feed_forward_length": 4096 if heads else 0, "context_length": 4096,
        "attention.key_length": 128, "attention.value_length": 128,
    }  # fmt: skip
    names = ("conv_kernel", "inner_size", "state_size", "group_count", "time_step_rank")
    metadata |= {f"ssm.{key}": value for key, value in zip(names, given, strict=True)}
    model = from_gguf({"general.architecture": name} | {f"{name}.{key}": value for key, value in metadata.items()})
    assert name in model.assumed
    assert kv_bytes(model, Load(context=2048, slots=slots)) / (1 << 20) == pytest.approx(mib, abs=1)


def test_an_unknown_family_has_a_larger_margin() -> None:
    known = from_config(LLAMA)
    guessed = replace(known, assumed="the architecture 'newcomer' is not known")
    weights = predicted(known, "Q4_K_M")
    load = Load(context=8192)
    past = past_prompts(kv_bytes(known, load))
    assert need(guessed, weights, load).margin - past > 2 * (need(known, weights, load).margin - past)
    cpu = [split(model, weights, load, 4 << 30).cpu.margin - past for model in (known, guessed)]
    assert cpu[1] > 2 * cpu[0]


def test_an_unknown_family_with_layer_types_keeps_its_windows() -> None:
    config = {**LLAMA, "model_type": "newcomer", "sliding_window": 512}
    config["layer_types"] = ["sliding_attention", "full_attention"] * 16
    assert [layer.window for layer in from_config(config).layers[:2]] == [512, 0]


@pytest.mark.parametrize(
    "changed",
    [
        {"num_hidden_layers": 0}, {"num_hidden_layers": -3}, {"num_hidden_layers": 2000}, {"hidden_size": None},
        {"num_attention_heads": 0}, {"num_attention_heads": "32"}, {"num_key_value_heads": -1},
        {"vocab_size": 1.5}, {"vocab_size": 1 << 40}, {"head_dim": 1 << 20}, {"hidden_size": True},
        {"layer_types": ["full_attention"]}, {"layer_types": ["telepathy"] * 32}, {"intermediate_size": [1, 2]},
        {"num_nextn_predict_layers": 17}, {"kv_lora_rank": 512}, {"max_position_embeddings": 0},
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="does not describe a model that is known") as caught:
        from_config({**LLAMA, **changed})
    assert caught.value.hint


@pytest.mark.parametrize("config", [{}, {"model_type": "llama"}, {"text_config": {}}, {"model_type": ["llama"]}])
def test_a_config_without_a_model_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError):
        from_config(config)


@pytest.mark.parametrize(
    "changed",
    [
        {"llama.block_count": None}, {"llama.block_count": 600}, {"llama.embedding_length": 0},
        {"llama.attention.head_count": "many"}, {"llama.attention.head_count_kv": [8] * 3},
        {"llama.attention.key_length": 1 << 20}, {"llama.vocab_size": None}, {"general.architecture": None},
        {"llama.nextn_predict_layers": 32}, {"llama.attention.head_count_kv": [8] * 2000},
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="does not describe a model that is known"):
        from_gguf(metadata_of(from_config(LLAMA)) | changed)


def test_a_period_of_windows_may_be_a_number() -> None:
    metadata = metadata_of(shape("gemma-3-4b"))
    listed = from_gguf(metadata)
    assert from_gguf(metadata | {"gemma3.attention.sliding_window_pattern": 6}) == listed
    assert from_gguf({k: v for k, v in metadata.items() if "pattern" not in k}) == listed
    plain = {k: v for k, v in metadata.items() if "sliding" not in k}
    assert all(layer.attention is Attention.SLIDING or not layer.window for layer in from_gguf(plain).layers)


def test_heads_may_differ_from_layer_to_layer() -> None:
    metadata = metadata_of(from_config(LLAMA)) | {"llama.attention.head_count_kv": [8, 4] * 16}
    model = from_gguf(metadata)
    assert [layer.kv_heads for layer in model.layers[:3]] == [8, 4, 8]
    assert kv_bytes(model, Load(context=8192)) == (1 << 30) * 3 // 4


def test_the_vocabulary_is_the_list_of_tokens_or_what_the_caller_knows() -> None:
    metadata = metadata_of(from_config(LLAMA)) | {"tokenizer.ggml.tokens": ["a", "b", "c"]}
    assert from_gguf(metadata).vocabulary == 3
    assert from_gguf(metadata, vocabulary=5).vocabulary == 5


def test_every_family_is_named_once() -> None:
    types = [kind for family in families().values() for kind in family.model_types]
    assert len(types) == len(set(types))
    assert by_model_type("mistral") is families()["llama"]
    assert by_model_type("newcomer") is None
    text = (resources.files("qlangchain.selection") / "families.toml").read_text(encoding="utf-8")
    assert set(tomllib.loads(text)) == set(families())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 40) | st.floats(allow_nan=True) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200)
@given(name=st.sampled_from(sorted(CONFIGS)), data=st.data())
def test_a_damaged_config_is_read_or_refused(name: str, data: st.DataObject) -> None:
    config = CONFIGS[name]
    inner = dict(config.get("text_config", config))
    for key in data.draw(st.lists(st.sampled_from(sorted(inner)), min_size=1, max_size=3)):
        inner[key] = data.draw(_JSON)
    _read_or_refused(from_config, {**config, "text_config": inner} if "text_config" in config else inner)


def test_a_list_that_is_none_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="mlp_only_layers"):
        from_config(CONFIGS["qwen3-30b-a3b"] | {"mlp_only_layers": True})


def _read_or_refused(read: Callable[[dict[str, Any]], architecture.Architecture], values: dict[str, Any]) -> None:
    try:
        model = read(values)
    except UnsupportedModelError as error:
        assert error.hint and len(error.message) < 400  # noqa: PT017
    else:
        assert all(size > 0 for tensor in tensors(model) for size in tensor.shape)
        assert kv_bytes(model, Load(context=512)) >= 0


@settings(max_examples=200)
@given(name=st.sampled_from(sorted(CONFIGS)), data=st.data())
def test_damaged_metadata_is_read_or_refused(name: str, data: st.DataObject) -> None:
    metadata = metadata_of(shape(name))
    for key in data.draw(st.lists(st.sampled_from(sorted(metadata)), min_size=1, max_size=3)):
        metadata[key] = data.draw(_JSON)
    _read_or_refused(from_gguf, metadata)
