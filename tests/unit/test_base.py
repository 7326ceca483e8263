"""Runtimes by name, and the pool that shares their engines."""

from __future__ import annotations

import subprocess
import sys
import threading
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from qlangchain.errors import EngineStartError, InvalidInputError, MissingDependencyError
from qlangchain.runtimes import base
from qlangchain.runtimes.llamacpp import LlamaCpp
from qlangchain.runtimes.pool import Pool
from qlangchain.types import Artifact, Capabilities, Endpoint, EngineOptions, Method, Origin

OPTIONS = EngineOptions(512)
WAIT = 10.0  # seconds; only a failing test waits so long


def artifact(digest: str = "d") -> Artifact:
    return Artifact(Path("model.gguf"), Method.GGUF, "Q8_0", digest, 1, Origin.FOUND, "m")


class Fake:
    """An engine that counts its starts and stops, in the order of all of them."""

    made: list[Fake]
    capabilities = Capabilities()

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        self.artifact, self.options = artifact, options
        self.starts = self.stops = 0
        self.stopped = threading.Event()
        self.error: Exception | None = None
        self.made.append(self)

    def start(self) -> Endpoint:
        self.starts += 1
        if self.error:
            raise self.error
        return Endpoint(f"http://{self.artifact.digest}")

    def stop(self) -> None:
        self.stops += 1
        self.stopped.set()


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """A runtime named "fake", declared by another package as its entry point."""
    Fake.made = []
    module = types.ModuleType("a_package_of_others")
    module.Runtime = Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_package_of_others", module)
    declare(monkeypatch, fake="a_package_of_others:Runtime")
    return Fake


def declare(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    group = "qlangchain.runtimes"
    found = [EntryPoint(name, value, group) for name, value in values.items()]
    monkeypatch.setattr(base, "entry_points", lambda *, group: found if group == "qlangchain.runtimes" else [])


# The register.


def test_the_built_in_runtime() -> None:
    assert base.load("llamacpp") is LlamaCpp


def test_a_runtime_of_another_package() -> None:
    engine = base.load("fake")(artifact(), OPTIONS)
    assert isinstance(engine, Fake)
    assert isinstance(engine, base.Engine)


def test_a_built_in_runtime_cannot_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, llamacpp="a_package_of_others:Runtime")
    assert base.load("llamacpp") is LlamaCpp


@pytest.mark.parametrize("name", ["", "vLLM", "Fake", "a_package_of_others:Runtime"])
def test_an_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        base.load(name)
    assert repr(name) in caught.value.message
    assert "fake, llamacpp" in caught.value.hint


@pytest.mark.parametrize("value", ["no_such_package:Runtime", "a_package_of_others:Misspelt"])
def test_a_runtime_that_is_declared_and_not_there(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    declare(monkeypatch, mine=value)
    with pytest.raises(MissingDependencyError) as caught:
        base.load("mine")
    assert "'mine'" in caught.value.message
    assert value in caught.value.hint


# The pool.


def test_one_engine_for_one_artifact_and_options(fake: type[Fake]) -> None:
    pool = Pool()
    with pool.lease("fake", artifact(), OPTIONS) as first, pool.lease("fake", artifact(), OPTIONS) as second:
        assert first == second
    assert len(fake.made) == 1
    assert pool.engine("fake", artifact(), EngineOptions(512)) is fake.made[0]
    pool.close()


@pytest.mark.parametrize(
    ("other", "options"), [("other", OPTIONS), ("d", EngineOptions(1024)), ("d", EngineOptions(512, slots=2))]
)
def test_another_engine_for_anything_else(fake: type[Fake], other: str, options: EngineOptions) -> None:
    pool = Pool()
    with pool.lease("fake", artifact(), OPTIONS), pool.lease("fake", artifact(other), options) as endpoint:
        assert endpoint.base_url == f"http://{other}"
    assert [engine.options for engine in fake.made] == [OPTIONS, options]
    pool.close()


def test_many_threads_get_one_engine(fake: type[Fake]) -> None:
    pool, together = Pool(), threading.Barrier(16)

    def call() -> None:
        together.wait(WAIT)
        with pool.lease("fake", artifact(), OPTIONS):
            pass

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(fake.made) == 1
    assert fake.made[0].starts == 16
    pool.close()


def test_an_engine_that_loads_does_not_hold_up_the_others(fake: type[Fake]) -> None:
    pool, loading, loaded = Pool(), threading.Event(), threading.Event()
    slow: Any = pool.engine("fake", artifact("slow"), OPTIONS)
    slow.start = lambda: (loading.set(), loaded.wait(WAIT))

    def call() -> None:
        with pool.lease("fake", artifact("slow"), OPTIONS):
            pass

    thread = threading.Thread(target=call)
    thread.start()
    assert loading.wait(WAIT)
    with pool.lease("fake", artifact("quick"), OPTIONS) as endpoint:
        assert endpoint.base_url == "http://quick"
        assert not loaded.is_set()
    loaded.set()
    thread.join(WAIT)
    pool.close()


def test_an_idle_engine_is_stopped_and_made_anew(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_KEEP_ALIVE", "0.02")
    pool = Pool()
    with pool.lease("fake", artifact(), OPTIONS):
        pass
    assert fake.made[0].stopped.wait(WAIT)
    with pool.lease("fake", artifact(), OPTIONS):
        pass
    assert len(fake.made) == 2
    assert fake.made[1].stopped.wait(WAIT)
    assert [engine.stops for engine in fake.made] == [1, 1]


def test_an_engine_at_work_is_never_stopped(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_KEEP_ALIVE", "0.02")
    pool = Pool()
    with pool.lease("fake", artifact("busy"), OPTIONS):
        with pool.lease("fake", artifact("idle"), OPTIONS):
            pass
        busy, idle = fake.made
        assert idle.stopped.wait(WAIT)
        assert not busy.stopped.wait(0.1)
        with pool.lease("fake", artifact("busy"), OPTIONS):
            pass
        assert len(fake.made) == 2
    assert busy.stopped.wait(WAIT)


def test_a_lease_ends_whatever_happens_in_it(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_KEEP_ALIVE", "0.02")
    pool = Pool()
    with pytest.raises(KeyboardInterrupt), pool.lease("fake", artifact(), OPTIONS):
        raise KeyboardInterrupt
    assert fake.made[0].stopped.wait(WAIT)


def test_an_engine_that_does_not_start_is_tried_again_by_the_next_call(fake: type[Fake]) -> None:
    pool = Pool()
    engine: Any = pool.engine("fake", artifact(), OPTIONS)
    engine.error = EngineStartError("no")
    for _ in range(2):
        with pytest.raises(EngineStartError), pool.lease("fake", artifact(), OPTIONS):
            pass
    engine.error = None
    with pool.lease("fake", artifact(), OPTIONS):
        pass
    assert engine.starts == 3
    assert len(fake.made) == 1
    pool.close()


def test_closing_stops_every_engine(fake: type[Fake]) -> None:
    pool = Pool()
    for digest in "abc":
        with pool.lease("fake", artifact(digest), OPTIONS):
            pass
    pool.close()
    assert [engine.stops for engine in fake.made] == [1, 1, 1]
    pool.close()
    assert [engine.stops for engine in fake.made] == [1, 1, 1]
    with pool.lease("fake", artifact("a"), OPTIONS):
        assert len(fake.made) == 4
    pool.close()


def test_an_unknown_runtime_leaves_nothing_behind(fake: type[Fake]) -> None:
    pool = Pool()
    with pytest.raises(InvalidInputError), pool.lease("no such", artifact(), OPTIONS):
        pass
    with pool.lease("fake", artifact(), OPTIONS):
        pass
    pool.close()
    assert len(fake.made) == 1


AT_EXIT = """
import sys, types
from pathlib import Path
from qlangchain.runtimes import base, pool
from qlangchain.types import Artifact, Endpoint, EngineOptions, Method, Origin

class Fake:
    def __init__(self, artifact, options): pass
    def start(self): return Endpoint("http://a")
    def stop(self): print("stopped", flush=True)

sys.modules["fake"] = module = types.ModuleType("fake")
module.Fake = Fake
base.BUILT_IN["fake"] = "fake:Fake"
with pool.shared().lease("fake", Artifact(Path("m"), Method.GGUF, "F16", "d", 1, Origin.FOUND, "m"), EngineOptions(16)):
    print("leased", flush=True)
"""
AFTER_A_FORK = """
import os
mine = pool.shared()
child = os.fork()
if child == 0:
    assert pool.shared() is not mine
    raise SystemExit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert pool.shared() is mine
"""


@pytest.mark.parametrize(
    "more", ["", pytest.param(AFTER_A_FORK, marks=pytest.mark.skipif(sys.platform == "win32", reason="fork"))]
)
def test_the_end_of_the_program_stops_its_engines_once(more: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", AT_EXIT + more], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.split() == ["leased", "stopped"]
    assert "Error" not in shown.stderr
