"""The arithmetic of judging: by hand where it can be done by hand, by laws everywhere else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qlangchain.errors import DiskFullError, InvalidInputError, ProductionError
from qlangchain.evaluate.figures import Tally, divergences, log_softmax, perplexity, standard_error
from qlangchain.evaluate.reference import FEWEST, Writer, cut, open_reference, rows_within

LOGITS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(2, 9)), elements=st.floats(-30, 30, width=32)
)


def test_divergence_by_hand() -> None:
    p, q = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    assert divergences(p, q)[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert divergences(q, p)[0] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_what_one_holds_impossible() -> None:
    p, q = np.array([[0.0, -np.inf]]), np.array([[0.0, 0.0]])
    assert divergences(p, q)[0] == pytest.approx(math.log(2))  # 0 * log 0 is 0
    assert divergences(q, p)[0] == math.inf  # p holds it possible, q does not


@given(LOGITS, st.floats(-50, 50))
def test_logits_mean_the_same_wherever_they_lie(logits: np.ndarray, shift: float) -> None:
    moved = logits + np.float32(shift)
    assert np.exp(log_softmax(logits)).sum(axis=-1) == pytest.approx(1)
    assert divergences(log_softmax(logits), moved) == pytest.approx(0, abs=1e-4)


@given(
    LOGITS.flatmap(
        lambda a: st.tuples(st.just(a), arrays.arrays(np.float32, a.shape, elements=st.floats(-30, 30, width=32)))
    )
)
def test_a_divergence_is_never_negative_and_bounded_by_the_logits(pair: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = pair
    found = divergences(log_softmax(first), second)
    assert (found >= 0).all()
    # |log p - log q| is at most twice the largest distance of the logits.
    assert (found <= 2 * np.abs(first.astype(float) - second).max(axis=-1) + 1e-4).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_model_that_predicts_no_numbers_is_said_to_be_broken(broken: float) -> None:
    with pytest.raises(ProductionError, match="no numbers"):
        log_softmax(np.array([[1.0, broken]]))


def test_perplexity_of_a_uniform_model_is_its_vocabulary() -> None:
    assert perplexity(-log_softmax(np.zeros((5, 7)))[:, 0]) == pytest.approx(7)
    assert perplexity(np.array([1000.0])) == math.inf


def test_the_standard_error_by_hand() -> None:
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)  # deviation sqrt(2) over sqrt(2)
    assert standard_error(np.array([5.0])) == math.inf


def test_a_tally_adds_up_chunks_of_any_size() -> None:
    random = np.random.default_rng(1)
    p, q = (log_softmax(random.normal(0, 2, (12, 50))) for _ in range(2))
    came = random.integers(0, 50, 12)
    loss, first = -p[np.arange(12), came], p.argmax(axis=-1)

    def figures(*cuts: int):
        tally = Tally()
        for start, end in zip((0, *cuts), (*cuts, 12), strict=True):
            part = slice(start, end)
            tally.add(p[part], loss[part], first[part], q[part], came[part])
        return tally.figures()

    whole = figures()
    assert whole.tokens == 12
    assert whole.kl == pytest.approx((np.exp(p) * (p - q)).sum(axis=-1).mean())
    assert whole.perplexity == pytest.approx(np.exp(-q[np.arange(12), came].mean()))
    assert whole.ratio == pytest.approx(whole.perplexity / whole.reference_perplexity)
    assert whole.top1 == pytest.approx((q.argmax(axis=-1) == first).mean())
    for other in (figures(5), figures(1, 2, 11)):
        assert (other.kl, other.top1, other.ratio) == pytest.approx((whole.kl, whole.top1, whole.ratio))


def test_other_vocabularies_are_refused_and_nothing_has_no_figures() -> None:
    tally = Tally()
    with pytest.raises(InvalidInputError, match="vocabularies differ"):
        tally.add(np.zeros((1, 5)), np.zeros(1), np.zeros(1, int), np.zeros((1, 6)), np.zeros(1, int))
    with pytest.raises(InvalidInputError, match="No token"):
        tally.figures()


@given(st.integers(0, 400), st.integers(FEWEST + 2, 64), st.integers(0, 2), st.integers(FEWEST + 2, 200) | st.none())
def test_a_text_is_cut_without_gaps_or_overlaps(count: int, length: int, begin: int, most: int | None) -> None:
    tokens, prefix = list(range(100, 100 + count)), list(range(begin))
    try:
        chunks = cut(tokens, length, prefix=prefix, most=most)
    except InvalidInputError:
        assert count < FEWEST or (most is not None and most <= FEWEST + begin)
        return
    bare = [chunk[begin:] for chunk in chunks]
    together = [token for chunk in bare for token in chunk]
    assert together == tokens[: len(together)]
    assert all(chunk[:begin] == prefix and FEWEST <= len(chunk) - begin <= length - begin for chunk in chunks)
    assert most is None or sum(len(chunk) - 1 for chunk in chunks) <= most
    if most is None:
        assert len(together) > count - FEWEST or len(together) == count - count % (length - begin)


def test_a_reference_comes_back_from_the_disk_as_precise_as_it_must_be(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    chunks = [list(random.integers(0, 300, size)) for size in (40, 20)]
    logits = [random.normal(0, 4, (len(chunk), 300)).astype(np.float32) for chunk in chunks]
    writer = Writer(tmp_path / "reference", chunks, 300)
    for index, values in enumerate(logits):
        writer.add(index, values)
    ppl = writer.close()
    read = open_reference(tmp_path / "reference")
    assert (read.lengths, read.longest, read.vocabulary) == ((40, 20), 40, 300)
    tally = Tally()
    for chunk, values in zip(read.chunks(), logits, strict=True):
        assert chunk.log_probabilities.shape == (len(chunk.tokens) - 1, 300)
        tally.add(chunk.log_probabilities, chunk.losses, chunk.favourites, values[:-1], chunk.tokens[1:])
    found = tally.figures()
    assert found.tokens == 58
    assert found.kl < 1e-5  # of the same model: what float16 costs
    assert found.top1 == 1
    assert found.perplexity == pytest.approx(ppl) == pytest.approx(found.reference_perplexity)


def test_a_reference_takes_no_more_disk_than_it_may() -> None:
    assert rows_within(1 << 20, 1024) == 512
    assert rows_within(1 << 30, 1024, free=1 << 20) == 256
    with pytest.raises(DiskFullError, match="MiB"):
        rows_within(1 << 30, 150_000, free=1 << 20)
