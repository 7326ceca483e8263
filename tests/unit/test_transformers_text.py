"""Tokens become text: whole characters, no stop strings, thoughts apart, whatever the pieces are."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from qlangchain.runtimes.transformers_server.text import Detokenizer, StopStrings, Thoughts, held_back


def pieces(text: str, cuts: list[int]) -> list[str]:
    marks = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(marks)]


@given(st.text(max_size=60))
def test_bytes_as_tokens_give_the_text_back(text: str) -> None:
    """A tokenizer of single bytes is the hardest case: no token is a whole character outside ASCII."""
    detokenizer = Detokenizer(lambda ids: bytes(ids).decode("utf-8", "replace"))
    said = [detokenizer.add(byte) for byte in text.encode()]
    assert "".join(said) + detokenizer.rest() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in said)


def test_an_unfinished_character_is_shown_at_the_end_only() -> None:
    detokenizer = Detokenizer(lambda ids: bytes(ids).decode("utf-8", "replace"))
    assert [detokenizer.add(byte) for byte in "aé".encode()[:2]] == ["a", ""]
    assert detokenizer.rest() == "\ufffd"


@given(
    st.text("abc", max_size=40),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 99)),
)
def test_stop_strings_cut_where_they_first_appear(text: str, stops: list[str], cuts: list[int]) -> None:
    stopper = StopStrings(stops)
    said = "".join(stopper.add(piece) for piece in pieces(text, cuts)) + stopper.rest()
    assert not any(stop in said for stop in stops)
    assert text.startswith(said)
    assert stopper.found == any(stop in text for stop in stops)
    if not stopper.found:
        assert said == text


@given(st.lists(st.integers(0, 99)), st.booleans())
def test_thoughts_are_parted_however_the_text_comes(cuts: list[int], opened: bool) -> None:
    text = "weigh <it>\n</think>\n\nfour</th <think> is text here"
    reader = Thoughts(thinking=opened)
    parts = [reader.add(piece) for piece in pieces(text if opened else f"<think>\n{text}", cuts)] + [reader.rest()]
    assert "".join(part[0] for part in parts).strip() == "weigh <it>"
    assert "".join(part[1] for part in parts) == "four</th <think> is text here"


@given(st.text(max_size=40).filter(lambda text: "<think>" not in text), st.lists(st.integers(0, 99)))
def test_an_answer_without_thoughts_is_left_as_it_is(text: str, cuts: list[int]) -> None:
    reader = Thoughts()
    parts = [reader.add(piece) for piece in pieces(text, cuts)] + [reader.rest()]
    assert "".join(part[0] for part in parts) == ""
    assert "".join(part[1] for part in parts).strip("\n") == text.strip("\n")


def test_what_is_held_back() -> None:
    assert held_back("answer <th", ("<think>",)) == 3
    assert held_back("answer", ("<think>",)) == 0
    assert held_back("", ("x",)) == 0
