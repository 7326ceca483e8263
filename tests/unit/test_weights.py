"""Sizes of weights: against llama.cpp's quantizer, its table, and what is published on the hub."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import DATA, PUBLISHED, shape

from qlangchain.artifacts.headers import GGML_TYPES
from qlangchain.errors import InvalidInputError
from qlangchain.selection.checkpoints import Checkpoint, Layout, checkpoint
from qlangchain.selection.tensors import tensors
from qlangchain.selection.weights import (
    file_bytes,
    file_types,
    formats,
    ggml_types,
    measured,
    predicted,
    row_bytes,
    tensor_bytes,
)

MIB = 1 << 20
QUANTIZED = json.loads((DATA / "llama_quantize.json").read_text(encoding="utf-8"))
NEED_IMATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS")


def test_block_sizes_are_those_of_the_header_reader() -> None:
    known = {name: (values, size) for name, values, size in GGML_TYPES.values()}
    assert {name: known[name] for name in ggml_types()} == ggml_types()


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_type_is_as_large_as_llama_cpp_makes_it(name: str) -> None:
    """27 models in 30 types: what `llama_model_quantize` announces (dry_run), to its last digit."""
    model = shape(name)
    ours = {format: round(predicted(model, format).total / MIB, 2) for format in QUANTIZED[name]}
    assert ours == pytest.approx(QUANTIZED[name], abs=0.0051)
    assert len(ours) == 30


@pytest.mark.parametrize(("format", "bits"), PUBLISHED["bits_per_weight"].items())
def test_the_table_of_llama_cpp(format: str, bits: float) -> None:
    model = shape("llama-3.1-8b")
    count = sum(tensor.elements for tensor in tensors(model))
    weights = predicted(model, format, imatrix=format in NEED_IMATRIX)
    assert round(weights.total * 8 / count, 4) == bits


@pytest.mark.parametrize("row", PUBLISHED["file"], ids=lambda row: f"{row['shape']}-{row['format']}")
def test_published_gguf_files(row: dict) -> None:
    made = file_bytes(shape(row["shape"]), row["format"], imatrix=True, prediction=row.get("prediction", True))
    assert made == pytest.approx(row["bytes"], rel=0.003)


@pytest.mark.parametrize("row", PUBLISHED["checkpoint"], ids=lambda row: row["repository"])
def test_published_checkpoints(row: dict) -> None:
    format = Checkpoint(
        layout=Layout(row["layout"]),
        bits=row.get("bits", 4),
        group=row.get("group", 128),
        head_copied=row.get("head_copied", False),
    )
    size = row["mib"] * MIB if "mib" in row else sum(row["gb"]) * 1e9
    assert checkpoint(shape(row["shape"]), format).total == pytest.approx(size, rel=0.005)


def test_the_published_table_is_large_enough_to_mean_something() -> None:
    rows = PUBLISHED["checkpoint"]
    assert len({row["repository"] for row in rows if row["layout"] in ("gptq", "awq")}) >= 20
    assert len({row["shape"] for row in rows}) >= 12
    assert all(row["source"] for row in rows)


def test_packed_words_are_not_parameters() -> None:
    """Peer bug 1: eight weights lie in one int32, so a count of elements is an eighth of the linear layers."""
    model = shape("llama-3.1-8b")
    whole = checkpoint(model, Checkpoint(layout=Layout.FULL)).total
    packed = checkpoint(model, Checkpoint(layout=Layout.AWQ)).total
    linear = sum(t.elements for t in tensors(model) if t.layer >= 0 and t.is_matrix)
    counted_as_parameters = 2 * (linear // 8 + sum(t.elements for t in tensors(model) if t.layer < 0))
    assert packed > 1.2 * counted_as_parameters
    assert packed / whole == pytest.approx(5.728 / 16.06, rel=0.001)


def test_embeddings_make_awq_larger_than_q4_k_m() -> None:
    model = shape("llama-3.1-8b")
    ratio = checkpoint(model, Checkpoint(layout=Layout.AWQ)).total / predicted(model, "Q4_K_M").total
    assert ratio == pytest.approx(1.16, abs=0.01)


def test_a_mixture_counts_all_of_its_experts() -> None:
    """Peer bug 2: memory goes by all experts; the part that one token reads is told apart."""
    weights = predicted(shape("qwen3-30b-a3b"), "Q4_K_M")
    assert sum(weights.experts) > 0.9 * weights.total
    assert weights.total > 17 * (1 << 30)


def test_labels_of_gpt_oss_mislead() -> None:
    """Peer bug 5: its experts stay in MXFP4 whatever the file is called."""
    sizes = {f: file_bytes(shape("gpt-oss-20b"), f) / 1e9 for f in ("Q2_K", "Q4_K_M", "MXFP4", "F16")}
    assert sizes == pytest.approx({"Q2_K": 11.5, "Q4_K_M": 11.6, "MXFP4": 12.1, "F16": 13.8}, rel=0.01)


def test_heads_that_predict_are_in_the_file_and_not_in_memory() -> None:
    """Peer bug 4: an MTP layer is counted in the file; the engine does not load it for answers."""
    weights = predicted(shape("qwen3.5-4b"), "Q8_0")
    assert weights.idle > 100e6
    assert weights.loaded == weights.total - weights.idle
    assert file_bytes(shape("qwen3.5-4b"), "Q8_0") - file_bytes(
        shape("qwen3.5-4b"), "Q8_0", prediction=False
    ) == pytest.approx(weights.idle, rel=1e-4)


def test_a_header_says_it_exactly() -> None:
    model = shape("qwen2.5-0.5b")
    types = file_types(model, "Q4_K_M", tensors(model))
    header = [(t.name, t.shape, types[t.name], tensor_bytes(t, types[t.name])) for t in tensors(model)]
    exact, guess = measured(model, "Q4_K_M", header), predicted(model, "Q4_K_M")
    assert exact.exact
    assert not guess.exact
    assert (exact.total, exact.layers, exact.embedding, exact.types) == (
        guess.total, guess.layers, guess.embedding, guess.types,
    )  # fmt: skip


def test_columns_that_do_not_divide_fall_back() -> None:
    types = file_types(shape("qwen2.5-0.5b"), "Q4_K_M", tensors(shape("qwen2.5-0.5b")))  # 896 columns
    assert types["blk.5.attn_q.weight"] == "Q5_0"
    assert types["blk.0.ffn_down.weight"] == "Q6_K"  # 4,864 columns do divide
    assert types["token_embd.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_an_importance_matrix_changes_few_types() -> None:
    model = shape("llama-3.1-8b")
    assert predicted(model, "Q4_0", imatrix=True).total > predicted(model, "Q4_0").total
    assert predicted(model, "IQ4_XS", imatrix=True).total < predicted(model, "IQ4_XS").total
    assert predicted(model, "Q4_K_M", imatrix=True).total == predicted(model, "Q4_K_M").total


def test_large_variants_keep_the_vocabulary_in_eight_bits() -> None:
    model = shape("llama-3.1-8b")
    types = file_types(model, "q4_k_l", tensors(model))
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert predicted(model, "Q4_K_L").total > predicted(model, "Q4_K_M").total


@pytest.mark.parametrize("format", ["Q4_K_X", "", "GPTQ"])
def test_an_unknown_type_is_named(format: str) -> None:
    with pytest.raises(InvalidInputError, match="not a type of GGUF file") as caught:
        predicted(shape("llama-3.2-1b"), format)
    assert "Q4_K_M" in caught.value.hint


def test_an_unknown_tensor_type_is_named() -> None:
    with pytest.raises(InvalidInputError, match="'Q9' is not a ggml type"):
        row_bytes("Q9", 256)


@pytest.mark.parametrize("wrong", [{"bits": 5}, {"group": -2}, {"group": 0}])
def test_an_impossible_checkpoint_is_refused(wrong: dict) -> None:
    with pytest.raises(InvalidInputError, match="no format"):
        Checkpoint(layout=Layout.GPTQ, **wrong)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 4096).map(lambda n: 32 * n),
    out=st.integers(1, 4096),
    groups=st.sampled_from([(128, 64), (64, 32), (-1, 128)]),
    layout=st.sampled_from([Layout.GPTQ, Layout.AWQ, Layout.PACKED]),
)
def test_smaller_groups_and_more_bits_are_never_smaller(
    rows: int, out: int, groups: tuple[int, int], layout: Layout
) -> None:
    coarse, fine = (Checkpoint(layout=layout, group=group).matrix_bytes(rows, out) for group in groups)
    assert coarse <= fine
    four, eight = (Checkpoint(layout=layout, bits=bits).matrix_bytes(rows, out) for bits in (4, 8))
    assert four < eight
    assert eight < 2.2 * rows * out + 100 * out + 8 * rows


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "gemma-4-e2b", "deepseek-v2-lite"])
def test_more_bits_are_never_smaller(name: str) -> None:
    model = shape(name)
    for ladder in (
        ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16", "F32"),
        ("Q4_0", "Q4_1", "Q5_1", "Q8_0"),
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_M", "IQ3_XXS", "IQ3_S", "IQ3_M", "IQ4_XS"),
    ):
        sizes = [predicted(model, format).total for format in ladder]
        assert sizes == sorted(sizes), ladder


@settings(max_examples=40)
@given(format=st.sampled_from(formats()), more=st.integers(1, 8))
def test_more_layers_are_never_smaller(format: str, more: int) -> None:
    model = shape("llama-3.2-1b")
    longer = replace(model, layers=model.layers + model.layers[:1] * more)
    assert predicted(longer, format).total > predicted(model, format).total
    weights = predicted(longer, format)
    assert weights.embedding + weights.output + sum(weights.layers) <= weights.total


@pytest.mark.parametrize("layout", list(Layout))
def test_every_layout_lies_below_16_bits(layout: Layout) -> None:
    model = shape("gpt-oss-20b")
    full = checkpoint(model, Checkpoint(layout=Layout.FULL)).total
    group = 0 if layout is Layout.FP8 else 128
    assert 0.2 * full < checkpoint(model, Checkpoint(layout=layout, group=group)).total <= full
