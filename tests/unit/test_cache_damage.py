"""Whatever happens to the cache's file is a miss and a line in the log, and never an exception or a wrong answer."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.outputs import Generation

from qlangchain.errors import InvalidInputError
from qlangchain.models.cache import MemoryCache, SqliteCache, codec, database
from qlangchain.models.cache import secret as secrets

ANSWER = [Generation(text="An answer.")]
SETTINGS = "[('_type', 'toy')]"


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


def filled(path: Path, entries: int = 20) -> None:
    cache = make(path)
    for number in range(entries):
        cache.update(f"prompt {number}", SETTINGS, [Generation(text=f"answer {number}" * 20)])
    cache.close()


@pytest.mark.parametrize("length", [0, 1, 50, 100, 4096, 5000])
def test_a_cut_file_is_a_miss(path: Path, length: int) -> None:
    filled(path)
    with path.open("rb+") as file:
        file.truncate(length)
    cache = make(path)
    assert cache.lookup("prompt 1", SETTINGS) is None
    cache.update("prompt 1", SETTINGS, ANSWER)
    assert cache.lookup("prompt 1", SETTINGS) == ANSWER


@pytest.mark.parametrize("content", [b"This is no database.", b"\0" * 8192, os.urandom(8192)])
def test_a_damaged_file_is_set_aside(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    filled(path)
    path.write_bytes(content)
    cache = make(path)
    for _ in range(3):
        assert cache.lookup("prompt 1", SETTINGS) is None
    cache.update("prompt 1", SETTINGS, ANSWER)
    assert cache.lookup("prompt 1", SETTINGS) == ANSWER
    if content.strip(b"\0"):
        assert path.with_name("cache.sqlite.damaged-1").read_bytes() == content
        assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_damage_while_the_file_is_open_is_a_miss(path: Path) -> None:
    filled(path)
    cache = make(path)
    assert cache.lookup("prompt 1", SETTINGS)
    with path.open("rb+") as file:
        file.write(os.urandom(path.stat().st_size))
    other = make(path)  # its first look finds the damage
    assert other.lookup("prompt 1", SETTINGS) is None
    for number in range(20):
        cache.lookup(f"prompt {number}", SETTINGS)
        other.lookup(f"prompt {number}", SETTINGS)
    for one, another in ((cache, other), (other, cache)):
        one.update("prompt", SETTINGS, ANSWER)
        assert another.lookup("prompt", SETTINGS) == ANSWER


def test_few_damaged_files_are_kept(path: Path) -> None:
    filled(path, 1)
    for _ in range(10):
        path.write_bytes(b"damage")
        make(path).update("prompt", SETTINGS, ANSWER)
    assert len(list(path.parent.glob("*.damaged-*"))) == 5


def test_a_table_that_is_not_ours_is_set_aside(path: Path) -> None:
    filled(path)
    rows(path, "DROP TABLE responses")
    rows(path, "CREATE TABLE responses (key, value)")
    cache = make(path)
    assert cache.lookup("prompt 1", SETTINGS) is None
    cache.update("prompt 1", SETTINGS, ANSWER)
    assert cache.lookup("prompt 1", SETTINGS) == ANSWER
    assert path.with_name("cache.sqlite.damaged-1").exists()


def test_another_version_s_answers_are_forgotten(path: Path) -> None:
    filled(path)
    rows(path, "PRAGMA user_version = 99")
    cache = make(path)
    assert cache.lookup("prompt 1", SETTINGS) is None
    cache.update("prompt 1", SETTINGS, ANSWER)
    assert cache.lookup("prompt 1", SETTINGS) == ANSWER
    assert rows(path, "PRAGMA user_version") == [(1,)]


@pytest.mark.parametrize("content", [b"", b"short", os.urandom(64)])
def test_a_damaged_secret_is_set_aside(path: Path, content: bytes) -> None:
    filled(path)
    secret = path.with_name("cache.sqlite.secret")
    secret.write_bytes(content)
    cache = make(path)
    assert cache.lookup("prompt 1", SETTINGS) is None
    cache.update("prompt 1", SETTINGS, ANSWER)
    assert make(path).lookup("prompt 1", SETTINGS) == ANSWER
    assert secret.stat().st_size == 32
    assert secret.with_name("cache.sqlite.secret.damaged-1").read_bytes() == content


def test_another_secret_is_a_miss(path: Path) -> None:
    filled(path)
    path.with_name("cache.sqlite.secret").write_bytes(os.urandom(32))
    assert make(path).lookup("prompt 1", SETTINGS) is None


def test_an_altered_row_is_deleted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(path, 2)
    ((before,),) = rows(path, "SELECT value FROM responses LIMIT 1")
    after = before.replace(b"answer 0", b"poison 0")
    rows(path, "UPDATE responses SET value = ? WHERE value = ?", after, before)
    cache = make(path)
    assert cache.lookup("prompt 0", SETTINGS) is None
    assert cache.lookup("prompt 1", SETTINGS)
    assert rows(path, "SELECT count(*) FROM responses") == [(1,)]
    assert "altered" in caplog.text


def test_rows_cannot_change_places(path: Path) -> None:
    filled(path, 2)
    (first, second) = rows(path, "SELECT key, tag, value, created FROM responses")
    rows(path, "UPDATE responses SET tag = ?, value = ?, created = ? WHERE key = ?", *first[1:], second[0])
    cache = make(path)
    found = [cache.lookup(f"prompt {number}", SETTINGS) for number in range(2)]
    assert sorted(answer is None for answer in found) == [False, True]


def test_a_thousand_altered_rows_are_a_thousand_misses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes the rows, no exception reaches a caller and no object of another class is made."""
    random.seed(7)
    filled(path, 1000)
    keys = [key for (key,) in rows(path, "SELECT key FROM responses")]
    values = [0, -1, 2**63 - 1, 1e308, "text", b"", b"\xff" * 40, None, "\ud83d"[:0], b"cos\nsystem\n(S'x'\ntR."]
    connection = sqlite3.connect(path)
    with connection:
        for key in keys:
            column = random.choice(["tag", "created", "value", "value", "value"])
            ((old,),) = connection.execute(f"SELECT {column} FROM responses WHERE key = ?", (key,)).fetchall()
            new = random.choice(values)
            if isinstance(old, bytes) and random.random() < 0.7:
                place = random.randrange(len(old))
                new = old[:place] + bytes([old[place] ^ random.randrange(1, 256)]) + old[place + 1 :]
            connection.execute(f"UPDATE responses SET {column} = ? WHERE key = ?", (new, key))
    connection.close()
    cache = make(path)
    assert [cache.lookup(f"prompt {number}", SETTINGS) for number in range(1000)] == [None] * 1000


def test_a_thousand_rows_signed_by_a_thief_of_the_secret(path: Path) -> None:
    """Signed rows reach the decoder: still no exception, and nothing but generations."""
    random.seed(7)
    filled(path, 1000)
    secret = path.with_name("cache.sqlite.secret").read_bytes()
    connection = sqlite3.connect(path)
    with connection:
        for key, created, value in connection.execute("SELECT key, created, value FROM responses").fetchall():
            new = bytearray(value)
            for _ in range(random.randrange(1, 4)):
                new[random.randrange(len(new))] = random.randrange(256)
            tag = secrets.entry_tag(secret, key, created, bytes(new))
            connection.execute("UPDATE responses SET value = ?, tag = ? WHERE key = ?", (bytes(new), tag, key))
    connection.close()
    cache = make(path)
    misses = 0
    for number in range(1000):
        found = cache.lookup(f"prompt {number}", SETTINGS)
        misses += found is None
        for generation in found or ():
            assert type(generation) is Generation
    assert misses > 100


def test_any_damage_in_the_pages_is_no_exception(path: Path, tmp_path: Path) -> None:
    random.seed(7)
    filled(path, 60)
    whole, secret = path.read_bytes(), path.with_name("cache.sqlite.secret")
    answers = {f"prompt {number}": [Generation(text=f"answer {number}" * 20)] for number in range(60)}
    for trial in range(40):
        place = tmp_path / str(trial) / "cache.sqlite"
        place.parent.mkdir()
        content = bytearray(whole)
        for _ in range(random.choice([1, 10, 1000])):
            content[random.randrange(len(content))] = random.randrange(256)
        place.write_bytes(content)
        shutil.copy(secret, place.with_name("cache.sqlite.secret"))
        cache = make(place)
        for prompt, answer in answers.items():
            assert cache.lookup(prompt, SETTINGS) in (None, answer)
        cache.update("new", SETTINGS, ANSWER)
        cache.clear()
        cache.close()


def test_a_deleted_file_is_begun_anew(path: Path) -> None:
    cache = make(path)
    cache.update("prompt", SETTINGS, ANSWER)
    shutil.rmtree(path.parent)
    assert cache.lookup("prompt", SETTINGS) is None
    cache.update("prompt", SETTINGS, ANSWER)
    assert make(path).lookup("prompt", SETTINGS) == ANSWER


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_a_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o500)
    try:
        cache = make(tmp_path / "cache.sqlite")
        for _ in range(3):
            cache.update("prompt", SETTINGS, ANSWER)
            assert cache.lookup("prompt", SETTINGS) is None
        cache.clear()
        assert len(caplog.records) == 1
    finally:
        tmp_path.chmod(0o700)


def test_a_directory_that_cannot_be_is_a_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = make(tmp_path / "file" / "cache.sqlite")
    for _ in range(3):
        cache.update("prompt", SETTINGS, ANSWER)
        assert cache.lookup("prompt", SETTINGS) is None
    cache.clear()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_locked_file_is_given_up_soon_and_used_later(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.01)
    cache = make(path)
    cache.update("before", SETTINGS, ANSWER)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    cache.update("prompt", SETTINGS, ANSWER)
    cache.update("prompt", SETTINGS, ANSWER)
    holder.execute("ROLLBACK")
    holder.close()
    assert len(caplog.records) == 1
    assert cache.lookup("before", SETTINGS) is None, "after an error the file is left alone for a while"
    cache._store._rests_until = 0
    assert cache.lookup("before", SETTINGS) == ANSWER
    assert cache.lookup("prompt", SETTINGS) is None


def test_a_full_disk_is_a_miss(path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cache = make(path)
    cache.update("before", SETTINGS, ANSWER)
    (connection,) = cache._store._idle
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own word for "database or disk is full"
    cache.update("prompt", SETTINGS, [Generation(text="x" * 100_000)])
    cache._store._rests_until = 0
    assert cache.lookup("prompt", SETTINGS) is None
    assert cache.lookup("before", SETTINGS) == ANSWER
    assert "full" in caplog.text


def test_somebody_else_s_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes")
    other = tmp_path / "other.sqlite"
    rows(other, "CREATE TABLE mine (a)")
    before = other.read_bytes()
    for place in (notes, other):
        with pytest.raises(InvalidInputError, match="not a response cache"):
            SqliteCache(place)
    with pytest.raises(InvalidInputError, match="directory"):
        SqliteCache(tmp_path)
    assert notes.read_text() == "my notes"
    assert other.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes.txt", "other.sqlite"]


def test_a_foreign_file_that_comes_later_is_left_alone(tmp_path: Path) -> None:
    cache = make(tmp_path / "cache.sqlite")
    rows(cache.path, "CREATE TABLE mine (a)")
    cache.update("prompt", SETTINGS, ANSWER)
    assert cache.lookup("prompt", SETTINGS) is None
    assert rows(cache.path, "SELECT name FROM sqlite_master") == [("mine",)]


# Threads and processes.


def test_many_threads_share_one_cache(path: Path) -> None:
    cache = make(path)

    def work(number: int) -> bool:
        answer = [Generation(text=f"answer {number % 40}")]
        cache.update(f"prompt {number % 40}", SETTINGS, answer)
        return cache.lookup(f"prompt {number % 40}", SETTINGS) == answer

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(work, range(400)))


def _work_in_a_process(path: Path, number: int, ready: Any, results: Any) -> None:
    ready.wait()
    cache = make(path)
    for turn in range(20):
        answer = [Generation(text=f"answer {turn}")]
        cache.update(f"prompt {turn}", SETTINGS, answer)
        results.put((number, turn, cache.lookup(f"prompt {turn}", SETTINGS) == answer))
    cache.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_that_begin_at_once_share_one_file(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_work_in_a_process, args=(path, n, ready, results)) for n in range(8)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in range(160)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    results.close()
    assert all(hit for _, _, hit in found)
    assert not list(path.parent.glob("*.damaged-*"))
    assert rows(path, "SELECT count(*) FROM responses") == [(20,)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_has_connections_of_its_own(path: Path) -> None:
    cache = SqliteCache(path)
    cache.update("prompt", SETTINGS, ANSWER)
    parents = set(map(id, cache._store._idle))
    cache._store._lock.acquire()  # as another thread might hold it at the moment of the fork
    child = os.fork()
    if child == 0:
        try:
            right = cache.lookup("prompt", SETTINGS) == ANSWER
            cache.update("child", SETTINGS, ANSWER)
            right = right and not parents & set(map(id, cache._store._idle))
        except BaseException:
            right = False
        os._exit(0 if right else 1)
    cache._store._lock.release()
    assert os.waitpid(child, 0)[1] == 0
    assert cache.lookup("child", SETTINGS) == ANSWER
    cache.update("parent", SETTINGS, ANSWER)
    assert make(path).lookup("parent", SETTINGS) == ANSWER


def test_no_connection_is_left_to_the_garbage_collector(path: Path) -> None:
    code = f"""
import warnings; warnings.simplefilter("error")
from langchain_core.outputs import Generation
from qlangchain.models.cache import SqliteCache
cache = SqliteCache({str(path)!r}); cache.update("p", "s", [Generation(text="x")]); cache = None
cache = SqliteCache({str(path)!r}); print(cache.lookup("p", "s"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "text='x'" in done.stdout
    assert done.stderr == ""
    assert not path.with_name("cache.sqlite-wal").exists(), "the last connection was closed"


def test_caches_travel_by_their_path(path: Path) -> None:
    cache = SqliteCache(path, ttl=50, store_prompts=True)
    cache.update("prompt", SETTINGS, ANSWER)
    for twin in (pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)):
        assert repr(twin) == repr(cache)
        assert twin.lookup("prompt", SETTINGS) == ANSWER
    assert repr(pickle.loads(pickle.dumps(MemoryCache(ttl=5)))) == repr(MemoryCache(ttl=5))


async def test_async_lookups_in_the_file_leave_the_event_loop_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path)
    cache, seen = SqliteCache(path), []
    get = cache._store.get
    monkeypatch.setattr(cache._store, "get", lambda key: (seen.append(threading.get_ident()), get(key))[1])
    assert await cache.alookup("prompt 1", SETTINGS)
    assert await cache.alookup("prompt 1", SETTINGS)
    assert len(seen) == 1, "the second was in memory"
    assert seen[0] != threading.get_ident()
    await cache.aclear()
    assert await cache.alookup("prompt 1", SETTINGS) is None


def test_an_answer_of_another_codec_is_deleted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "VERSION", 0)
    filled(path, 1)
    monkeypatch.undo()
    assert make(path).lookup("prompt 0", SETTINGS) is None
    assert rows(path, "SELECT count(*) FROM responses") == [(0,)]
