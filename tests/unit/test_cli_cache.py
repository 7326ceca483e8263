"""`qlangchain cache`: what it says, asks and returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result
from unit.storing import add, overwrite

from qlangchain import settings
from qlangchain.artifacts.store import Store
from qlangchain.cli import app
from qlangchain.errors import InvalidInputError, ModelNotFoundError


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("QLANGCHAIN_HOME", str(tmp_path / "home"))
    return Store(settings.read().store)


def call(*words: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(app, ["cache", *words], input=answer)


def said(*words: str, code: int = 0) -> Any:
    result = call(*words, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_an_empty_store(store: Store) -> None:
    assert call("ls").exit_code == 0
    assert said("ls") == {"store": str(store.root), "size": 0, "artifacts": []}
    assert said("verify") == {"whole": True, "files": []}
    assert not store.root.exists()


def test_ls_shows_what_is_there(store: Store) -> None:
    stored = add(store, {"a.gguf": b"x" * 2048}, format="Q4_0")
    output = call("ls").output
    assert stored.id[:12] in output and "org/name@cccccccc" in output and "2.0 KiB" in output
    (row,) = said("ls")["artifacts"]
    assert (row["id"], row["size"], row["path"]) == (stored.id, 2048, str(stored.path))


def test_verify_ends_with_1_where_something_has_changed(store: Store) -> None:
    stored = add(store, {"a.gguf": b"a", "b.gguf": b"b"})
    assert said("verify", stored.id[:12])["whole"] is True
    assert "2 files, 2 B: whole" in call("verify").output
    overwrite(stored.directory / "a.gguf", b"!")
    assert said("verify", code=1)["whole"] is False
    assert call("verify").exit_code == 1
    assert "missing: a.gguf" in call("verify").output


def test_rm_asks_first(store: Store) -> None:
    stored = add(store, {"a.gguf": b"a"})
    assert "Would remove" in call("rm", "org/name", "--dry-run").output
    for answer in ("n\n", ""):
        assert call("rm", "org/name", answer=answer).exit_code == 1
        assert store.get(stored.id)
    with pytest.raises(InvalidInputError, match="does not ask"):
        raise call("rm", "org/name", "--json").exception or AssertionError
    assert call("rm", "org/name", answer="y\n").exit_code == 0
    assert store.list() == ()


def test_rm_with_yes(store: Store) -> None:
    add(store, {"a.gguf": b"a"})
    removed = said("rm", "org/name", "--yes")
    assert (removed["dry_run"], removed["size"]) == (False, 1)
    assert store.list() == ()
    assert isinstance(call("rm", "org/name", "--yes").exception, ModelNotFoundError)
    assert isinstance(call("rm", "--yes").exception, InvalidInputError)


def test_gc_shows_then_asks_then_removes(store: Store) -> None:
    store.partial("a" * 64).write_bytes(b"12345")
    assert said("gc", "--dry-run")["size"] == 0
    assert said("gc", "--dry-run", "--older-than", "0")["size"] == 5
    assert call("gc", "--older-than", "0", answer="n\n").exit_code == 1
    assert store.partial("a" * 64).exists()
    result = call("gc", "--older-than", "0", answer="y\n")
    assert result.exit_code == 0 and "5 B" in result.output
    assert not store.partial("a" * 64).exists()
    assert call("gc", "--yes").exit_code == 0
    assert call("gc", "--older-than", "-1").exit_code == 2


def test_export_and_import(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = add(store, {"a.gguf": b"a"}, format="Q4_0")
    bundle = tmp_path / "a.tar"
    assert said("export", str(bundle), "org/name:Q4_0")["size"] == bundle.stat().st_size
    assert isinstance(call("export", str(bundle), "org/name").exception, InvalidInputError)
    assert call("export", str(bundle), "org/name", "--force").exit_code == 0
    assert isinstance(call("export", str(bundle)).exception, InvalidInputError)
    monkeypatch.setenv("QLANGCHAIN_HOME", str(tmp_path / "other"))
    assert stored.id[:12] in call("import", str(bundle)).output
    assert [entry["id"] for entry in said("import", str(bundle))["artifacts"]] == [stored.id]
    assert Store(tmp_path / "other").find("org/name")


def test_nothing_said_is_help(store: Store) -> None:
    output = call().output
    for command in ("ls", "verify", "rm", "gc", "export", "import"):
        assert command in output
