"""What formats cost: the papers' figures, grades between tables, and verdicts in their place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlangchain.selection.formats import table
from qlangchain.selection.quality import (
    GRADES,
    KL,
    PERPLEXITY,
    UNKNOWN_GRADE,
    Confidence,
    Verdict,
    compare,
    grade_of,
    quality,
)

DATA = table("published.toml")
TABLES = {one["id"]: one for one in DATA["table"]}
EVERY = sorted(
    {name for one in DATA["table"] for row in one["row"] for name in (*row["loss"], *row.get("imatrix", {}))}
    | set(DATA["unquantized"])
    | set(DATA["no_figure"])
    | set(DATA["at_least"])
)
SIZES = st.floats(1e8, 5e11)


def test_every_table_is_whole() -> None:
    assert len(TABLES) == len(DATA["table"])
    for one in DATA["table"]:
        assert one["unit"] in DATA["grades"]
        assert one["source"]
        assert one["text"]
        sizes = [row["parameters"] for row in one["row"]]
        assert sizes == sorted(set(sizes))
        for row in one["row"]:
            assert row["model"]
            assert all(0 <= loss < 10 for loss in (*row["loss"].values(), *row.get("imatrix", {}).values()))
    for bounds in DATA["grades"].values():
        assert bounds == sorted(bounds)
        assert len(bounds) == len(GRADES) - 2
    assert not set(DATA["no_figure"]) & set(DATA["at_least"])
    assert all(quality(name, 8e9).loss is not None for name in DATA["at_least"])


@pytest.mark.parametrize(
    ("format", "parameters", "table_id", "loss"),
    [
        ("AWQ", 6.74e9, "awq-paper", 5.60 / 5.47 - 1),
        ("GPTQ-INT4", 6.74e9, "awq-paper", 5.69 / 5.47 - 1),
        ("GPTQ-INT4", 13.0e9, "awq-paper", 4.98 / 4.88 - 1),
        ("Q4_K_M", 8.03e9, "llama.cpp-llama-3-8b", 0.031273),
        ("Q4_0", 8.03e9, "llama.cpp-llama-3-8b", 0.071940),
        ("GPTQ-INT8", 0.49e9, "qwen2-tasks", 1 - 32.6 / 34.4),
        ("AWQ", 1.54e9, "qwen2-tasks", 1 - 46.5 / 48.4),
        ("FP8", 8.03e9, "openllm-cards", 1 - 73.44 / 73.79),
    ],
)
def test_published_figures(format: str, parameters: float, table_id: str, loss: float) -> None:
    found = quality(format, parameters)
    assert (found.table, found.confidence) == (table_id, Confidence.HIGH)
    assert found.loss == pytest.approx(loss, abs=2e-5)
    assert found.source


def test_the_figures_that_no_paper_supports_are_nowhere() -> None:
    """Llama-2-7B of 5.09, with GPTQ 5.56 and AWQ 5.34: an AWQ below the unquantized model's 5.47 cannot be."""
    awq = TABLES["awq-paper"]["row"][0]["loss"]
    assert all(loss > 0 for loss in awq.values())
    assert awq["AWQ-INT4"] != pytest.approx(5.34 / 5.09 - 1, abs=1e-3)


def test_both_units_of_one_table_give_the_same_grades() -> None:
    """The boundaries of KL divergence and of perplexity lie at the same formats of the table that has both."""
    kl, perplexity = TABLES["llama.cpp-llama-3-8b"]["row"][0], TABLES["llama.cpp-llama-3-8b-perplexity"]["row"][0]
    for kind in ("loss", "imatrix"):
        assert set(kl[kind]) == set(perplexity[kind])
        for name, loss in kl[kind].items():
            assert grade_of(loss, KL) == grade_of(perplexity[kind][name], PERPLEXITY), name


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("Q8_0", "Q6_K"), ("Q6_K", "Q5_K_M"), ("Q5_K_M", "Q5_1"), ("Q5_1", "Q4_K_M"), ("Q4_K_M", "Q4_0"),
        ("Q4_0", "Q2_K"), ("AWQ-INT4", "GPTQ-INT4"), ("GPTQ-INT8", "AWQ-INT4"), ("BF16", "Q8_0"), ("Q8_0", "MXFP4"),
    ],
)  # fmt: skip
def test_orders_at_7b(better: str, worse: str) -> None:
    assert compare(better, worse, 7e9) == -1
    assert compare(worse, better, 7e9) == 1
    assert quality(better, 7e9).rank <= quality(worse, 7e9).rank


def test_incomparable_tables_are_never_mixed() -> None:
    """Both are small losses, of 3 % perplexity and 0.03 nats: nobody measured which is smaller."""
    assert compare("AWQ-INT4", "Q4_K_M", 7e9) == 0
    assert quality("AWQ-INT4", 7e9).unit != quality("Q4_K_M", 7e9).unit


def test_small_models_lose_more() -> None:
    for name in ("AWQ-INT4", "GPTQ-INT4", "Q4_K_M", "Q4_0"):
        assert quality(name, 0.5e9).rank > quality(name, 8e9).rank, name
    assert quality("Q8_0", 0.5e9).rank == 1
    assert "small models lose more" in quality("Q4_K_M", 0.5e9).source
    assert quality("Q4_K_M", 0.5e9).confidence is Confidence.LOW


def test_a_figure_between_two_sizes_lies_between_theirs() -> None:
    low, middle, high = (quality("GPTQ-INT4", size).loss for size in (1.54e9, 3.0e9, 7.62e9 / 2.1))
    assert low is not None and middle is not None and high is not None
    assert high < middle < low


def test_an_importance_matrix_counts() -> None:
    plain, better = (quality("Q4_K_M", 8e9, imatrix=flag).loss for flag in (False, True))
    assert plain is not None and better is not None
    assert better < plain
    assert quality("IQ4_XS", 8e9).loss == pytest.approx(0.036334)  # made with one only


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4", "Q7_Q", ""])
def test_no_figure_is_never_invented(name: str) -> None:
    found = quality(name, 8e9)
    assert (found.loss, found.rank, found.confidence) == (None, UNKNOWN_GRADE, Confidence.NONE)
    assert "no figure" in found.source


def test_a_model_published_in_a_format_loses_nothing_by_it() -> None:
    assert quality("MXFP4", 21e9, native=True).rank == 0


def test_a_verdict_replaces_what_was_published() -> None:
    verdict = Verdict("ab" * 32, "Q4_0", 0.004, 1.5, 0.98, "cd" * 32, "2026-11-22")
    found = quality("Q4_0", 8e9, verdict=verdict)
    assert (found.loss, found.unit, found.rank, found.confidence) == (0.004, KL, 1, Confidence.MEASURED)
    assert "2026-11-22" in found.source
    ratio = Verdict("ab", "Q4_0", None, 1.2, None, "cd", "2026-11-22")
    assert quality("MXFP4", 8e9, verdict=ratio).rank == 4
    empty = Verdict("ab", "Q4_0", None, float("nan"), None, "cd", "2026-11-22")
    assert quality("Q4_0", 8e9, verdict=empty) == quality("Q4_0", 8e9)


@given(st.sampled_from(EVERY) | st.text(max_size=8), SIZES, st.booleans())
def test_any_format_of_any_size_has_a_grade(name: str, parameters: float, imatrix: bool) -> None:
    found = quality(name, parameters, imatrix=imatrix)
    assert 0 <= found.rank < len(GRADES)
    assert found.grade
    assert (found.loss is None) == (found.confidence is Confidence.NONE)
    assert found == quality(name, parameters, imatrix=imatrix)


@given(st.sampled_from(EVERY), st.sampled_from(EVERY), SIZES)
def test_comparing_is_antisymmetric(first: str, second: str, parameters: float) -> None:
    assert compare(first, second, parameters) == -compare(second, first, parameters)
    assert compare(first, first, parameters) == 0


@given(st.sampled_from(sorted(TABLES)), SIZES)
def test_in_one_table_less_loss_is_never_a_worse_grade(table_id: str, parameters: float) -> None:
    found = [one for name in EVERY if (one := quality(name, parameters)).table == table_id and one.loss is not None]
    sizes = {"llama.cpp-llama-3-8b", "awq-paper", "qwen2-tasks"}
    if table_id in sizes:  # in the cards, sizes differ from format to format, and so does what is inferred
        ordered = sorted(found, key=lambda one: one.loss or 0)
        assert [one.rank for one in ordered] == sorted(one.rank for one in ordered)
