"""What a hub id may look like, and what is none."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlangchain.artifacts.model_id import ModelId, parse
from qlangchain.errors import InvalidInputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", ModelId("Qwen/Qwen2.5-7B-Instruct")),
        ("bartowski/X-GGUF:Q4_K_M", ModelId("bartowski/X-GGUF", "Q4_K_M")),
        ("bartowski/X-GGUF:q4_k_m", ModelId("bartowski/X-GGUF", "Q4_K_M")),
        ("a/b@main", ModelId("a/b", None, "main")),
        ("a/b@refs/pr/3", ModelId("a/b", None, "refs/pr/3")),
        (f"a/b:Q8_0@{COMMIT}", ModelId("a/b", "Q8_0", COMMIT)),
        ("https://huggingface.co/Qwen/Qwen3-8B", ModelId("Qwen/Qwen3-8B")),
        ("https://huggingface.co/Qwen/Qwen3-8B/tree/v1.0/", ModelId("Qwen/Qwen3-8B", None, "v1.0")),
        ("hf.co/bartowski/X-GGUF:Q4_K_M", ModelId("bartowski/X-GGUF", "Q4_K_M")),
        ("hf://Qwen/Qwen3-8B", ModelId("Qwen/Qwen3-8B")),
        ("https://huggingface.co/a/b/blob/main/x-Q4_K_M.gguf", ModelId("a/b", "Q4_K_M", "main")),
        ("https://hf.co/a/b/resolve/main/x-ud-q4_k_xl.gguf?download=true", ModelId("a/b", "UD-Q4_K_XL", "main")),
        ("https://hf.co/a/b/blob/refs%2Fpr%2F3/Q8_0/x-00001-of-00002.gguf", ModelId("a/b", "Q8_0", "refs/pr/3")),
        ("https://huggingface.co/a/b/blob/main/config.json", ModelId("a/b", None, "main")),
        ("  a/b  ", ModelId("a/b")),
        ("microsoft/phi-4", ModelId("microsoft/phi-4")),
        ("a_b/c.d_e-f", ModelId("a_b/c.d_e-f")),
    ],
)
def test_ids(text: str, expected: ModelId) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "demo", "a", "a/b/c", "/a/b", "a/", "../b", "a/..", "a/b..c", "a/b--c", "-a/b", "a/b.", "a b/c", "ä/b", "a\\b",
     "a/" + "b" * 97, "./a", "a/b\n/c", "https://example.com/a/b", "x" * 500, "a/b\x00"],
)  # fmt: skip
def test_what_is_no_id(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    "text",
    ["a/b@", "a/b@..", "a/b@a..b", "a/b@-x", "a/b@x y", "a/b@x?y", "a/b:", "a/b:Q4 K", "a/b:../x",
     "https://huggingface.co/datasets/a/b"],
)  # fmt: skip
def test_a_wrong_half_is_said(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse(text)


def test_only_a_full_commit_is_a_pin() -> None:
    assert ModelId("a/b", None, COMMIT).is_pinned
    assert not ModelId("a/b", None, COMMIT[:12]).is_pinned
    assert not ModelId("a/b").is_pinned


@given(
    st.text(max_size=60) | st.from_regex(r"[\w./-]{1,20}/[\w.-]{1,20}(:[\w.]{0,8})?(@[\w./-]{0,9})?", fullmatch=True)
)
def test_any_text_is_an_id_or_is_not(text: str) -> None:
    with contextlib.suppress(InvalidInputError):
        found = parse(text)
        if found is not None:
            assert parse(str(found)) == found
            assert ".." not in found.repo and found.repo.count("/") == 1
