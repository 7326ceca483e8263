"""Files of the Hugging Face cache: used where their bytes are right, never trusted, never tied to ours."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from unit.storing import git, overwrite, publish, sha

from qlangchain.artifacts import adopt as adopt_module
from qlangchain.artifacts.adopt import adopt, hub_cache
from qlangchain.artifacts.store import Store

BYTES = b"GGUF and the rest" * 100
SIZE = len(BYTES)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache: Path, digest: str, content: bytes = BYTES, *, links: bool = True) -> Path:
    repository = cache / "models--org--name"
    blob, name = repository / "blobs" / digest, repository / "snapshots" / ("c" * 40) / "sub" / "model.gguf"
    name.parent.mkdir(parents=True, exist_ok=True)
    if not links:
        name.write_bytes(content)
        return name
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    name.symlink_to(os.path.relpath(blob, name.parent))
    return blob


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("digest", [sha(BYTES), git(BYTES)])
def test_what_lies_in_the_cache_is_used(store: Store, cache: Path, digest: str, links: bool) -> None:
    source = cached(cache, digest, links=links)
    path = store.adopt(digest, SIZE)
    assert path == store.path_of(sha(BYTES)) == store.known(digest)
    assert path.read_bytes() == BYTES
    assert path.stat().st_mode & 0o777 == 0o444
    assert source.read_bytes() == BYTES
    assert source.stat().st_mode & 0o200
    assert not list((store.root / "partial").iterdir())


def test_a_later_change_in_the_cache_does_not_reach_the_store(store: Store, cache: Path) -> None:
    source = cached(cache, sha(BYTES))
    path = store.adopt(sha(BYTES), SIZE)
    assert path and path.stat().st_ino != source.stat().st_ino
    source.write_bytes(b"something else")
    assert store.blob(sha(BYTES), afresh=True) == path


@pytest.mark.parametrize("content", [BYTES[::-1], BYTES[:-1], BYTES + b"x", b""])
@pytest.mark.parametrize("links", [True, False])
def test_what_is_not_what_its_name_says_is_not_used(store: Store, cache: Path, content: bytes, links: bool) -> None:
    source = cached(cache, sha(BYTES), content, links=links)
    assert store.adopt(sha(BYTES), SIZE) is None
    assert source.read_bytes() == content
    assert not list(store.root.glob("blobs/*")) + list(store.root.glob("partial/*"))


def test_a_whole_copy_is_found_behind_a_damaged_one(store: Store, cache: Path) -> None:
    cached(cache, sha(BYTES), BYTES[::-1])
    blob = cache / "models--org--other" / "blobs" / sha(BYTES)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(BYTES)
    assert store.adopt(sha(BYTES), SIZE)


def test_where_there_is_nothing(store: Store, cache: Path) -> None:
    assert store.adopt(sha(BYTES), SIZE) is None
    cache.mkdir()
    (cache / "models--file").write_text("no directory")
    (cache / "models--org--name" / "blobs" / sha(BYTES)).mkdir(parents=True)
    (cache / "datasets--org--name" / "blobs").mkdir(parents=True)
    (cache / "datasets--org--name" / "blobs" / sha(BYTES)).write_bytes(BYTES)
    assert store.adopt(sha(BYTES), SIZE) is None


def test_what_is_in_the_store_is_not_looked_for(store: Store, cache: Path) -> None:
    path = publish(store, BYTES, also=git(BYTES))
    cached(cache, sha(BYTES), b"damaged")
    assert store.adopt(sha(BYTES), SIZE) == store.adopt(git(BYTES), SIZE) == path


def test_a_link_that_leads_out_of_the_cache_is_only_bytes(store: Store, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(BYTES)
    blobs = cache / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / sha(BYTES)).symlink_to(tmp_path / "mine")
    path = store.adopt(sha(BYTES), SIZE)
    assert path and not path.is_symlink()
    assert (tmp_path / "mine").stat().st_nlink == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs owners and modes")
def test_without_room_for_a_copy_the_inode_is_shared_and_watched(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt_module, "_clone", lambda *_: False)
    monkeypatch.setattr(adopt_module, "_SPARE", 1 << 60)
    source = cached(cache, sha(BYTES))
    path = store.adopt(sha(BYTES), SIZE)
    assert path and path.samefile(source)
    assert source.stat().st_mode & 0o777 == 0o444
    overwrite(source, BYTES[::-1])
    assert store.blob(sha(BYTES)) is None
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    overwrite(source, BYTES)
    assert store.adopt(sha(BYTES), SIZE) is None
    assert not list((store.root / "partial").iterdir())


def test_where_the_store_cannot_be_written_nothing_is_adopted(store: Store, cache: Path) -> None:
    cached(cache, sha(BYTES))
    store.root.mkdir()
    (store.root / "blobs").write_text("in the way")
    assert store.adopt(sha(BYTES), SIZE) is None
    assert not list((store.root / "partial").iterdir())


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, str(Path.home() / ".cache/huggingface/hub")),
        ({"HF_HUB_CACHE": "~/x"}, str(Path.home() / "x")),
    ],
)
def test_the_cache_is_where_its_client_has_it(environ: dict[str, str], expected: str) -> None:
    assert hub_cache(environ) == Path(expected)


def test_the_place_agrees_with_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", "/somewhere/else")
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert str(hub_cache()) == said


def test_an_explicit_cache(store: Store, tmp_path: Path) -> None:
    cached(tmp_path / "elsewhere", sha(BYTES))
    assert adopt(store, sha(BYTES), SIZE, cache=tmp_path / "elsewhere")
