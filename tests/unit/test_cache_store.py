"""The file of the cache: what it keeps and for how long, and that nothing which happens to it reaches a caller."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_tests.integration_tests.cache import AsyncCacheTestSuite, SyncCacheTestSuite

from qlangchain import set_cache
from qlangchain.errors import InvalidInputError
from qlangchain.models.cache import MemoryCache, SqliteCache, recent, store

ANSWER = [Generation(text="An answer.")]
SETTINGS = "[('_type', 'toy')]"


class TestSqlite(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Iterator[BaseCache]:
        cache = SqliteCache(tmp_path / "cache.sqlite")
        yield cache
        cache.close()


class TestSqliteWithoutMemory(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self, tmp_path: Path) -> BaseCache:
        return SqliteCache(tmp_path / "cache.sqlite", memory_bytes=0)


class TestSqliteAsync(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self, tmp_path: Path) -> BaseCache:
        return SqliteCache(tmp_path / "cache.sqlite")


class TestMemory(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self) -> BaseCache:
        return MemoryCache()


class TestMemoryAsync(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self) -> BaseCache:
        return MemoryCache()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "cache.sqlite"


def make(path: Path, **options: Any) -> SqliteCache:
    """A cache that looks into the file every time."""
    return SqliteCache(path, **{"memory_bytes": 0, **options})


def rows(path: Path, statement: str, *values: Any) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        with connection:
            return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def test_answers_are_there_for_the_next_process(path: Path) -> None:
    make(path).update("prompt", SETTINGS, ANSWER)
    again = make(path)
    assert again.lookup("prompt", SETTINGS) == ANSWER
    assert again.lookup("prompt", SETTINGS + " ") is None
    assert again.lookup("promp", "t" + SETTINGS) is None


def test_nothing_is_made_before_it_is_needed(path: Path) -> None:
    SqliteCache(path)
    assert not path.parent.exists()


def test_files_are_for_their_owner_alone(path: Path) -> None:
    old = os.umask(0)
    try:
        cache = make(path)
        cache.update("prompt", SETTINGS, ANSWER)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert {"cache.sqlite", "cache.sqlite-wal", "cache.sqlite.secret"} <= modes.keys()
        assert set(modes.values()) == {0o600}, modes
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        cache.close()
        path.chmod(0o644)
        make(path).lookup("prompt", SETTINGS)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)


def test_prompts_are_kept_as_a_keyed_hash_alone(path: Path) -> None:
    cache = make(path)
    cache.update("a very private prompt", "private settings", ANSWER)
    kept = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"An answer." in kept
    assert b"private" not in kept
    ((key, prompt),) = rows(path, "SELECT key, prompt FROM responses")
    assert prompt is None
    other = make(path.with_name("other.sqlite"))
    other.update("a very private prompt", "private settings", ANSWER)
    ((other_key,),) = rows(other.path, "SELECT key FROM responses")
    assert len(key) == len(other_key) == 32
    assert key != other_key, "each store has a secret of its own"


def test_prompts_are_kept_where_that_is_asked_for(path: Path) -> None:
    make(path, store_prompts=True).update("a prompt", "settings", ANSWER)
    assert rows(path, "SELECT prompt FROM responses") == [('["a prompt", "settings"]',)]


class Marked(str):
    """A prompt that is more than its text."""

    __slots__ = ()


@pytest.mark.parametrize("kind", [SqliteCache, MemoryCache])
def test_a_prompt_of_another_class_is_another_prompt(kind: Any) -> None:
    cache = kind()
    cache.clear()
    cache.update(Marked("prompt"), SETTINGS, ANSWER)
    assert cache.lookup("prompt", SETTINGS) is None
    assert cache.lookup(Marked("prompt"), SETTINGS) == ANSWER


@pytest.mark.parametrize("options", [{}, {"memory_bytes": 0}])
def test_every_hit_is_a_copy(path: Path, options: Any) -> None:
    for cache in (SqliteCache(path, **options), MemoryCache()):
        answer = [ChatGeneration(message=AIMessage("x", response_metadata={"a": [1]}))]
        cache.update("prompt", SETTINGS, answer)
        answer[0].message.response_metadata["a"].append(2)
        first = cache.lookup("prompt", SETTINGS)
        assert isinstance(first, list)
        first[0].message.response_metadata["a"].append(3)
        assert cache.lookup("prompt", SETTINGS)[0].message.response_metadata == {"a": [1]}


def test_what_cannot_be_kept_is_not_kept(path: Path) -> None:
    for cache in (make(path, max_entry_bytes=200), MemoryCache(max_entry_bytes=200)):
        cache.update("strange", SETTINGS, [Generation(text="x", generation_info={"a": object()})])
        cache.update("long", SETTINGS, [Generation(text="x" * 200)])
        assert cache.lookup("strange", SETTINGS) is None
        assert cache.lookup("long", SETTINGS) is None


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(store, "time", clock)
    monkeypatch.setattr(recent, "time", clock)
    return clock


@pytest.mark.parametrize("memory_bytes", [0, 10_000])
def test_answers_end_with_their_time(path: Path, clock: Clock, memory_bytes: int) -> None:
    for cache in (SqliteCache(path, ttl=100, memory_bytes=memory_bytes), MemoryCache(ttl=100)):
        cache.update("prompt", SETTINGS, ANSWER)
        clock.now += 99
        assert cache.lookup("prompt", SETTINGS) == ANSWER
        clock.now += 1
        assert cache.lookup("prompt", SETTINGS) is None
    assert rows(path, "SELECT count(*) FROM responses") == [(0,)]


def test_an_answer_from_the_future_is_not_believed(path: Path, clock: Clock) -> None:
    cache = make(path, ttl=100)
    clock.now += 10_000
    cache.update("prompt", SETTINGS, ANSWER)
    clock.now -= 10_000
    assert cache.lookup("prompt", SETTINGS) is None


def test_the_memory_in_front_is_short_lived(path: Path, clock: Clock) -> None:
    mine, another_process = SqliteCache(path), SqliteCache(path)
    mine.update("prompt", SETTINGS, ANSWER)
    another_process.clear()
    assert mine.lookup("prompt", SETTINGS) == ANSWER
    clock.now += 60
    assert mine.lookup("prompt", SETTINGS) is None


def test_the_least_recently_used_go_first(path: Path, clock: Clock) -> None:
    cache = make(path, max_bytes=32_000, max_entry_bytes=10_000)
    answer = [Generation(text="x" * 1000)]
    cache.update("used", SETTINGS, answer)
    for number in range(100):
        clock.now += 1
        cache.update(f"prompt {number}", SETTINGS, answer)
        assert cache.lookup("used", SETTINGS) == answer
        ((size, length),) = rows(path, "SELECT sum(size), sum(length(value)) FROM responses")
        assert length < size <= 32_000
    assert cache.lookup("prompt 99", SETTINGS) == answer
    assert cache.lookup("prompt 0", SETTINGS) is None
    ((count,),) = rows(path, "SELECT count(*) FROM responses")
    assert count > 20
    cache.close()
    assert path.stat().st_size < 80_000, "the file gives room back"


def test_memory_has_its_limit_too() -> None:
    cache = MemoryCache(max_bytes=10_000, max_entry_bytes=5000)
    for number in range(100):
        cache.update(f"prompt {number}", SETTINGS, [Generation(text="x" * 1000)])
        assert cache.lookup(f"prompt {number}", SETTINGS)
    assert sum(cache.lookup(f"prompt {number}", SETTINGS) is not None for number in range(100)) == 9


def test_access_times_are_written_in_batches(path: Path, clock: Clock) -> None:
    cache = SqliteCache(path)
    cache.update("prompt", SETTINGS, ANSWER)
    cache.update("other", SETTINGS, ANSWER)
    clock.now += 10
    cache.lookup("prompt", SETTINGS)
    assert rows(path, "SELECT count(*) FROM responses WHERE used > created") == [(0,)]
    cache.update("third", SETTINGS, ANSWER)
    assert rows(path, "SELECT count(*) FROM responses WHERE used > created") == [(1,)]
    clock.now += 10
    cache.lookup("other", SETTINGS)
    cache.close()
    assert rows(path, "SELECT count(*) FROM responses WHERE used > created") == [(2,)]


def test_clearing_leaves_no_text_behind(path: Path) -> None:
    cache = SqliteCache(path)
    for number in range(50):
        cache.update(f"prompt {number}", SETTINGS, [Generation(text=f"telltale {number}" * 50)])
    cache.clear()
    assert cache.lookup("prompt 1", SETTINGS) is None
    assert not any(b"telltale" in file.read_bytes() for file in path.parent.iterdir())


# set_cache.


@pytest.fixture
def _global() -> Iterator[None]:
    yield
    set_llm_cache(None)


@pytest.mark.usefixtures("_global")
def test_set_cache_sets_langchain_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_HOME", str(tmp_path))
    cache = set_cache()
    assert get_llm_cache() is cache
    assert isinstance(cache, SqliteCache)
    assert cache.path == tmp_path / "cache" / "responses.sqlite"
    assert set_cache("sqlite", ttl=60, cache_sampled=True).ttl == 60
    assert set_cache(tmp_path / "here").path == tmp_path / "here"
    assert set_cache(str(tmp_path / "there.sqlite")).path == tmp_path / "there.sqlite"
    assert type(set_cache("memory", max_bytes=5000, max_entry_bytes=100)) is MemoryCache
    own = InMemoryCache()
    assert set_cache(own) is get_llm_cache() is own
    assert set_cache(None) is None
    assert get_llm_cache() is None


@pytest.mark.usefixtures("_global")
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("sqllite",), {}),
        ((7,), {}),
        ((None,), {"ttl": 5}),
        ((InMemoryCache(),), {"ttl": 5}),
        (("memory",), {"store_prompts": True}),
        (("sqlite",), {"tll": 5}),
        (("sqlite",), {"ttl": 0}),
        (("sqlite",), {"max_bytes": 10}),
        (("sqlite",), {"max_entry_bytes": 0}),
    ],
)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(arguments: Any, options: Any) -> None:
    before = set_cache("memory")
    with pytest.raises(InvalidInputError) as caught:
        set_cache(*arguments, **options)
    assert caught.value.hint
    assert get_llm_cache() is before
