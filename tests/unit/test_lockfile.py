"""The lock file: what it pins comes back the same, and what cannot be right is refused."""

from __future__ import annotations

import contextlib
import random
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.storing import add, manifest_of

from qlangchain.artifacts import lockfile
from qlangchain.artifacts.lockfile import Locked, diff, merge, read, write
from qlangchain.artifacts.manifest import Manifest, StoredFile
from qlangchain.artifacts.store import Store
from qlangchain.errors import ArtifactError, CorruptFileError, InvalidInputError, ModelNotFoundError
from qlangchain.types import Method

ONE = Locked(
    "Qwen/Qwen2.5-7B-Instruct",
    manifest_of(
        {"b-00002-of-00002.gguf": b"two", "a-00001-of-00002.gguf": b"one"}, repo="Qwen/Qwen2.5-7B-Instruct-GGUF",
        revision="main", method=Method.GGUF, format="Q4_K_M", licence="apache-2.0", model="Qwen2.5",
    ),
)  # fmt: skip
TWO = Locked('odd "name"\\ 分\x7f\n', manifest_of({"sub/分词.json": b"{}"}, repo="org/two"))
MADE = Locked("./models/tiny", Manifest.produced(key="ab12", files=[StoredFile("t.gguf", 3, "a" * 64)], format="Q8_0"))


def test_what_is_pinned_comes_back(tmp_path: Path) -> None:
    path = tmp_path / lockfile.NAME
    write(path, [TWO, ONE, MADE])
    found = read(path)
    assert [(entry.model, entry.id) for entry in found] == sorted((entry.model, entry.id) for entry in (ONE, TWO, MADE))
    one = next(entry for entry in found if entry.model == ONE.model)
    assert (one.manifest.licence, one.manifest.format, one.manifest.method) == ("apache-2.0", "Q4_K_M", Method.GGUF)
    assert set(one.manifest.files) == set(ONE.manifest.files)
    assert not diff([ONE, TWO, MADE], found)


def test_the_same_content_is_the_same_text(tmp_path: Path) -> None:
    write(tmp_path / "a", [ONE, TWO, MADE])
    write(tmp_path / "b", [MADE, TWO, ONE])
    write(tmp_path / "c", read(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    text = (tmp_path / "a").read_text(encoding="utf-8")
    assert 'repo = "Qwen/Qwen2.5-7B-Instruct-GGUF"' in text
    assert tomllib.loads(text)["version"] == 1


def test_what_is_pinned_is_found_in_a_store_without_a_network(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stored = add(store, {"a.gguf": b"one"}, revision="main", format="Q4_0", header={"layers": 3})
    write(tmp_path / "lock", [Locked("org/name:Q4_0", stored.manifest)])
    (entry,) = read(tmp_path / "lock")
    assert store.get(entry.id) == stored


def test_merging_and_comparing() -> None:
    newer = Locked(ONE.model, manifest_of({"a.gguf": b"new"}, format="Q4_K_M", method=Method.GGUF, commit="d" * 40))
    beside = Locked(ONE.model, manifest_of({"a.gguf": b"new"}, format="Q8_0", method=Method.GGUF))
    assert merge([ONE, TWO], [newer]) == tuple(sorted([newer, TWO], key=lambda entry: entry.place))
    assert len(merge([ONE], [beside])) == 2
    change = diff([ONE, TWO], [newer, MADE])
    assert (change.added, change.removed, change.changed) == ((MADE,), (TWO,), ((ONE, newer),))
    assert change
    assert not diff([ONE, TWO], [TWO, ONE])
    assert not diff([], [])


def test_one_place_is_pinned_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="twice"):
        write(tmp_path / "lock", [ONE, ONE])
    assert list(tmp_path.iterdir()) == []


BAD = {
    "empty": "",
    "no version": "[[artifact]]\n",
    "other version": "version = 2\n",
    "more": 'version = 1\nmore = "x"\n',
    "no tables": "version = 1\nartifact = 5\n",
    "no table": "version = 1\nartifact = [5]\n",
    "no TOML": "version = = 1",
    "conflict": "<<<<<<< HEAD\nversion = 1\n",
    "deep": "version = 1\nx = " + "[" * 50_000,
    "binary": "\0",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_is_no_lock_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    with pytest.raises(CorruptFileError, match="no lock file"):
        read(tmp_path / "lock")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('repo = "org/two"', 'repo = "../two"'), ('repo = "org/two"', ""), ('repo = "org/two"', "repo = 5"),
        ('kind = "downloaded"', 'kind = "found"'), ('kind = "downloaded"', ""),
        ('kind = "downloaded"', 'kind = "produced"'),
        (f'commit = "{"c" * 40}"', 'commit = "main"'), ("size = 2", "size = -2"), ("size = 2", "size = 2.0"),
        ("size = 2,", ""), ("sub/", "../"), ('sha256 = "', 'sha256 = "x'), ("files = [", "files = [5,"),
        ("files = [", "more = 1\nfiles = ["), ("[[artifact]]", '[[artifact]]\nmethod = "magic"'),
        ("[[artifact]]", "[[artifact]]\nformat = 5"), ("[[artifact]]", "[[artifact]]\nrevision = 2026-01-01"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_right(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "lock"
    write(path, [Locked("two", TWO.manifest)])
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(CorruptFileError):
        read(path)


def test_mutations_are_refused_or_pin_something_that_can_be(tmp_path: Path) -> None:
    path, chance = tmp_path / "lock", random.Random(7)
    write(path, [ONE, TWO, MADE])
    whole = path.read_bytes()
    for _ in range(500):
        raw = bytearray(whole)
        at = chance.randrange(len(raw))
        if chance.random() < 0.5:
            raw[at] ^= 1 << chance.randrange(8)
        else:
            del raw[at : at + chance.randrange(1, 60)]
        path.write_bytes(raw)
        with contextlib.suppress(CorruptFileError):
            assert all(len(entry.id) == 64 for entry in read(path))


def test_where_there_is_none_or_no_room(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        read(tmp_path / "lock")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError):
        write(tmp_path / "file" / "lock", [ONE])


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)


@given(texts, texts, texts)
def test_any_words_survive(tmp_path_factory: pytest.TempPathFactory, model: str, licence: str, revision: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.lock"
    entry = Locked(model, manifest_of({"a.gguf": b"1"}, licence=licence, revision=revision))
    write(path, [entry])
    (found,) = read(path)
    assert (found.model, found.manifest.licence, found.manifest.revision) == (model, licence, revision)
