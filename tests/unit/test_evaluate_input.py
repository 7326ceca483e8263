"""What the user hands over for judging: formats, texts, prompts; and how answers are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlangchain.errors import InvalidInputError
from qlangchain.evaluate.agreement import Agreement, agree, common_prefix
from qlangchain.evaluate.formats import DEFAULT, group_size, parse, parse_all
from qlangchain.evaluate.running import RUNS, resident, speed_prompts
from qlangchain.evaluate.texts import Prompt, read_prompts, read_text
from qlangchain.types import Method


@pytest.mark.parametrize(
    ("word", "name", "method", "bits"),
    [
        ("fp16", "F16", Method.GGUF, 0),
        ("BFLOAT16", "BF16", Method.GGUF, 0),
        ("q4_k_m", "Q4_K_M", Method.GGUF, 0),
        ("IQ4_XS", "IQ4_XS", Method.GGUF, 0),
        ("gptq-4", "GPTQ-INT4", Method.GPTQ, 4),
        ("GPTQ-INT8", "GPTQ-INT8", Method.GPTQ, 8),
        ("int8", "GPTQ-INT8", Method.GPTQ, 8),
        ("gptq", "GPTQ-INT4", Method.GPTQ, 4),
        (" awq ", "AWQ-INT4", Method.AWQ, 4),
        ("awq-4", "AWQ-INT4", Method.AWQ, 4),
    ],
)
def test_a_format_has_many_spellings(word: str, name: str, method: Method, bits: int) -> None:
    found = parse(word)
    assert (found.name, found.method, found.bits) == (name, method, bits)


@pytest.mark.parametrize("word", ["", "Q4", "int4", "gptq-3", "awq-8", "fp7", "Q4_0;rm", "../Q4_0"])
def test_what_is_no_format_is_refused_with_examples(word: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse(word)
    assert caught.value.hint


def test_formats_come_as_a_text_or_a_list_each_once() -> None:
    assert [one.name for one in parse_all("fp16, Q4_0,f16,")] == ["F16", "Q4_0"]
    assert parse_all(DEFAULT) == parse_all(",".join(DEFAULT))
    with pytest.raises(InvalidInputError, match="No format"):
        parse_all(" , ")


@pytest.mark.parametrize(("columns", "size"), [([256, 768], 128), ([896, 4864], 128), ([576, 1536], 64), ([80], 16)])
def test_groups_divide_every_layer(columns: list[int], size: int) -> None:
    assert group_size(columns) == size


def test_a_text_is_words_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("﻿什么是量化？", encoding="utf-8")
    assert read_text(file) == read_text(str(file)) == "什么是量化？"
    assert read_text("no such file.txt") == "no such file.txt"
    assert len(read_text(None)) > 1000
    (tmp_path / "latin.txt").write_bytes(b"\xe9\xff")
    for bad in (tmp_path / "absent.txt", tmp_path / "latin.txt", tmp_path):
        with pytest.raises(InvalidInputError) as caught:
            read_text(bad)
        assert caught.value.hint


def test_prompts_come_in_every_usual_form(tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\n\ntwo\n", encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(lines)] == ["one", "two"]
    items = [
        "plain",
        {"prompt": "asked", "answer": "right"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
    ]
    for name, content in (("p.jsonl", "\n".join(map(json.dumps, items))), ("p.json", json.dumps(items))):
        file = tmp_path / name
        file.write_text(content, encoding="utf-8")
        found = read_prompts(str(file))
        assert found == read_prompts(items)
        assert [(prompt.text, prompt.wanted) for prompt in found] == [("plain", None), ("asked", "right"), ("u", None)]
    assert read_prompts(None) == ()
    assert read_prompts([Prompt(({"role": "user", "content": "x"},))])[0].text == "x"


@pytest.mark.parametrize(
    "bad",
    [[], [""], [{"prompt": 5}], [{"messages": []}], [{"messages": [{"role": "robot", "content": "x"}]}], [7],
     [{"prompt": "x", "answer": 1}], [{"messages": "hello"}]],
)  # fmt: skip
def test_prompts_that_are_none_are_refused(bad: list[object]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_prompts(bad)
    assert caught.value.hint


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", "{"), ("b.json", '{"prompt": "x"}'), ("c.txt", "\n\n")])
def test_files_of_prompts_that_cannot_be_read_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInputError):
        read_prompts(tmp_path / name)


def test_agreement_by_hand() -> None:
    found = agree(["abcd", " b ", None, "x"], ["abxx", "b", "c", None], ["abcd", None, "c", "y"])
    assert found.prompts == 4
    assert found.same == pytest.approx(1 / 3)
    assert found.prefix == pytest.approx((0.5 + 1 + 0) / 3)
    assert found.right == pytest.approx(1 / 3)
    assert found.failed == 1
    assert agree(["a"]) == Agreement(1, None, None)
    with pytest.raises(InvalidInputError, match="2 to compare"):
        agree(["a"], ["a", "b"])


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_every_text_agrees_with_itself(answers: list[str]) -> None:
    found = agree(answers, answers, answers)
    assert (found.same, found.prefix, found.right, found.failed) == (1, 1, 1, 0)


@given(st.text(), st.text())
def test_a_common_beginning_is_a_share_and_the_same_from_both_sides(first: str, second: str) -> None:
    share = common_prefix(first, second)
    assert 0 <= share <= 1
    assert share == common_prefix(second, first)
    assert (share == 1) == (first == second)


@given(st.text(min_size=1).filter(str.strip))
def test_timed_prompts_are_never_empty(text: str) -> None:
    prompts = speed_prompts(text)
    assert len(prompts) == RUNS + 1
    assert all(prompts)


def test_memory_is_told_of_processes_that_live() -> None:
    import os

    own = resident([os.getpid(), os.getpid()])
    assert own is not None and own > 1 << 20
    assert resident([]) is None
    assert resident([2**22 + 1]) is None
