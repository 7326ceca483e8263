"""Calibration text from names, files and lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlangchain.errors import InvalidInputError, MissingDependencyError, OfflineError
from qlangchain.produce.datasets import read_texts


def test_the_text_that_ships() -> None:
    assert read_texts(None) is None
    assert read_texts("default") is None


def test_lists_stay_as_they_are() -> None:
    assert read_texts(["one", "two"]) == ["one", "two"]
    assert read_texts(("one",)) == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", "one\nline\n\n \ntwo\n", ["one\nline", "two\n"]),
        ("a.md", "\ufeffone", ["one"]),
        ("a.jsonl", '{"text": "one"}\n\n"two"\n', ["one", "two"]),
        ("a.jsonl", json.dumps({"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}), ["a\nb"]),
        ("a.json", '["one", {"content": "two"}, ""]', ["one", "two"]),
    ],
)
def test_files(tmp_path: Path, name: str, content: str, texts: list[str]) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    assert read_texts(tmp_path / name) == texts
    assert read_texts(str(tmp_path / name)) == texts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b" \n\n ", "holds no text"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b"{}", "no list"),
        ("a.jsonl", b'{"text": 5}', "is no text"),
        ("a.jsonl", b"5", "is no text"),
    ],
)
def test_files_that_hold_no_text(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=words) as caught:
        read_texts(tmp_path / name)
    assert caught.value.hint


@pytest.mark.parametrize("dataset", [[], [1], "no-such-name", "./none.txt", "some/file.txt"])
def test_what_is_no_text_is_refused(dataset: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_texts(dataset)
    assert caught.value.hint


def test_data_sets_on_the_hub_need_the_network_and_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wikitext2", "c4", "org/set"):
        with pytest.raises(OfflineError, match="offline mode"):
            read_texts(name, offline=True)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match="pip install datasets"):
        read_texts("wikitext2", offline=False)
