"""Manifests: what is written is read again, and nothing that somebody else wrote is believed or does harm."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.storing import add

from qlangchain.artifacts.manifest import Manifest, StoredFile, is_newer, parse, produced_id
from qlangchain.artifacts.store import Store
from qlangchain.errors import CorruptFileError, InvalidInputError, UnsafeSourceError
from qlangchain.types import Method, Origin

DIGEST = "a" * 64
FILE = StoredFile("model.gguf", 5, DIGEST)


def downloaded(**changes: Any) -> Manifest:
    return Manifest.downloaded(**{"repo": "org/name", "commit": "c" * 40, "files": [FILE], **changes})


FULL = downloaded(
    model="Org/Name", revision="main", licence="mit", method=Method.GGUF, format="Q4_K_M", bits=4.9, tool="hub",
    tool_version="1", source="there", header={"architecture": "qwen2", "parameters": 7_000_000_000, "rope": [1, 2.5]},
    files=[FILE, StoredFile("sub/分词.json", 0, "b" * 64)],
)  # fmt: skip


@pytest.mark.parametrize("manifest", [FULL, downloaded(), Manifest.produced(key="ab12", files=[FILE], bits=4)])
def test_what_is_written_is_read_again(manifest: Manifest) -> None:
    assert parse(json.loads(json.dumps(manifest.to_dict()))) == manifest


def test_the_id_is_of_the_repository_the_commit_and_the_bytes() -> None:
    two = [FILE, StoredFile("b", 1, "b" * 64)]
    same = {downloaded(files=two).id, downloaded(files=two[::-1], format="Q4_0", licence="mit", revision="main").id}
    assert len(same) == 1
    others = {
        downloaded(repo="org/other").id,
        downloaded(commit="d" * 40).id,
        downloaded(files=two[:1]).id,
        downloaded(files=[StoredFile("other.gguf", 5, DIGEST)]).id,
        downloaded(files=[StoredFile("model.gguf", 5, "b" * 64)]).id,
        Manifest.produced(key="ab", files=[FILE]).id,
        Manifest.produced(key="ac", files=[FILE]).id,
    }
    assert len(others | same) == 8
    assert Manifest.produced(key="ab", files=two).id == produced_id("ab")


@pytest.mark.parametrize(
    "changes",
    [{"repo": name} for name in ("", "..", "../..", "/a", "a/b/c", "a/../b", "a\\b", "a b/c", "a/b\n", "-a/b", None, 5)]
    + [{"commit": commit} for commit in ("", "main", "C" * 40, "c" * 39, "c" * 41, "c" * 40 + "\n", None, 5)]
    + [{"files": files} for files in ([], [FILE, FILE], [FILE, StoredFile("MODEL.gguf", 1, DIGEST)])]
    + [{"files": [FILE, StoredFile("model.gguf/x", 1, DIGEST)]}, {"files": [StoredFile("a", 1, DIGEST)] * 10_001}]
    + [{"files": [StoredFile("a", size, DIGEST)]} for size in (-1, 1 << 60, True, 1.0, "1", None)]
    + [{"files": [StoredFile("a", 1, digest)]} for digest in ("", "a" * 40, "A" * 64, DIGEST + "\n", None)]
    + [{"bits": bits} for bits in (0, -1, 65, float("nan"), float("inf"), "4", True)]
    + [{"format": "x" * 5000}, {"licence": 5}, {"model": None}, {"revision": "\ud800"}, {"method": "GGUF"}]
    + [{"header": {"a": object()}}, {"header": {"a": float("nan")}}, {"header": {5: 1}}, {"header": [1]}]
    + [{"header": {str(number): 1 for number in range(3000)}}, {"header": {"a": [[[[[[[[1]]]]]]]]}}],
    ids=lambda changes: repr(changes)[:60],
)
def test_what_cannot_be_right_is_refused_when_it_is_made(changes: dict[str, Any]) -> None:
    with pytest.raises((InvalidInputError, UnsafeSourceError)):
        downloaded(**changes)


NAMES = ["", ".", "..", "../x", "a/../../x", "/x", "//x", "a//b", "a/./b", "a/", "C:x", "C:\\x", "\\\\host\\x", "a\\b",
         "a\0b", "a\nb", "a\x7f", "\u202egguf", "a\u200b", "con", "con.gguf", "a/NUL", "x" * 600, "a/" * 300 + "a",
         "e\u0301", "a.", "a ", "a:b", "\ud800", "%2e%2e/x", "．．/x", "a∕b/..", "~/../x"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_hostile_name_is_refused_on_every_way_in(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeSourceError):
        downloaded(files=[StoredFile(name, 5, DIGEST)])
    content = FULL.to_dict()
    content["files"][0]["name"] = name
    with pytest.raises(CorruptFileError):
        parse(content)


def mutated(content: dict[str, Any], chance: random.Random) -> Any:
    """The manifest with one thing wrong somewhere: another kind, another value, something more, something less."""
    other = [None, True, -1, 1 << 70, 1.5, "", "x", "../../x", "\0", "x" * 5000, [], {}, [[]], {"a": 1}, float("inf"),
             "produced", "found", DIGEST, 2, "\ud800", [None] * 3]  # fmt: skip
    content = copy.deepcopy(content)
    places: list[tuple[Any, Any]] = [(content, key) for key in content]
    places += [(entry, key) for entry in content["files"] for key in entry]
    places += [(content["files"], 0), (content["header"], "architecture")]
    where, key = chance.choice(places)
    kind = chance.randrange(4)
    if kind == 0:
        del where[key]
    elif kind == 1 and isinstance(where, dict):
        where[chance.choice(["more", "Id", "", "schema "])] = chance.choice(other)
    elif kind == 2 and isinstance(where, dict):
        where[chance.choice(list(where))] = where[key]
    else:
        where[key] = chance.choice(other)
    return content


def test_a_thousand_mutations_are_a_miss_or_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    store, chance = Store(tmp_path / "store"), random.Random(4)
    stored = add(
        store, {"model.gguf": b"GGUF", "sub/config.json": b"{}"}, header={"architecture": "qwen2"}, format="Q4_0"
    )
    path = store.root / "artifacts" / f"{stored.id}.json"
    good = path.read_bytes()
    misses = 0
    for number in range(1000):
        if number % 2:
            damaged = json.dumps(mutated(json.loads(good), chance)).encode()
        else:
            raw = bytearray(good)
            for _ in range(chance.randrange(1, 4)):
                at = chance.randrange(len(raw))
                change = chance.randrange(3)
                if change == 0:
                    raw[at] ^= 1 << chance.randrange(8)
                elif change == 1:
                    del raw[at : at + chance.randrange(1, 200)]
                else:
                    raw[at:at] = chance.choice([b"\0", b"[" * 5000, b'"', b"9" * 5000, b"\xff", b"{}", b"\\ud800"])
            damaged = bytes(raw)
        path.write_bytes(damaged)
        found = store.get(stored.id)
        assert len(store.find("org/name")) <= 1
        assert store.resolve("org/name", format="Q4_0") in (None, found)
        if number % 50 == 0:
            store.gc(dry_run=True)
        if found is None:
            misses += 1
        else:
            assert found.id == stored.id
            assert [(f.name, f.sha256) for f in found.manifest.files] == [
                (f.name, f.sha256) for f in stored.manifest.files
            ]
    assert misses > 500
    path.write_bytes(good)
    assert store.get(stored.id) == stored
    assert {entry.name for entry in tmp_path.iterdir()} == {"store"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{}" * 9_000_000, b"[" * 200_000, b"\0" * 100, b'{"schema": 1}'],
    ids=lambda content: repr(content[:12]),
)
def test_a_damaged_manifest_is_set_aside(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path / "store")
    stored = add(store, {"model.gguf": b"GGUF"})
    path = store.root / "artifacts" / f"{stored.id}.json"
    path.write_bytes(content)
    assert store.list() == ()
    assert not path.exists()
    assert any(entry.name.startswith(path.name) for entry in (store.root / "quarantine").iterdir())
    assert store.add(stored.manifest) == stored


def test_a_manifest_of_a_later_version_is_left_alone_with_its_files(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stored = add(store, {"model.gguf": b"GGUF"})
    path = store.root / "artifacts" / f"{stored.id}.json"
    path.write_text(json.dumps({**stored.manifest.to_dict(), "schema": 2, "new": 1}))
    assert is_newer(json.loads(path.read_text()))
    assert store.list() == ()
    store.gc(older_than=0)
    assert path.exists()
    assert stored.path.read_bytes() == b"GGUF"
    assert store.blob(stored.digest)


def test_a_manifest_that_was_copied_under_another_id_is_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stored = add(store, {"model.gguf": b"GGUF"})
    path = store.root / "artifacts" / f"{stored.id}.json"
    path.with_name(f"{'e' * 64}.json").write_bytes(path.read_bytes())
    assert store.list() == (stored,)
    assert store.get("e" * 64) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(json_values | st.dictionaries(st.sampled_from(sorted(FULL.to_dict())), json_values))
def test_anything_at_all_is_a_manifest_or_a_corrupt_file(content: Any) -> None:
    with pytest.raises(CorruptFileError):
        parse(content)


facts = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=50) | st.lists(st.integers(), max_size=5),
    max_size=8,
)  # fmt: skip


@given(facts, st.sampled_from(Method), st.floats(0.5, 64))
def test_any_facts_survive_the_way_through_json(header: dict[str, Any], method: Method, bits: float) -> None:
    manifest = downloaded(header=header, method=method, bits=bits)
    again = parse(json.loads(json.dumps(manifest.to_dict())))
    assert again == manifest
    assert again.kind is Origin.DOWNLOADED
