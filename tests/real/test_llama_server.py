"""A `llama-server` binary is used like the wheel: found, supervised, killed with its parent, never without a key."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from qlangchain import get_chat_model, pipeline
from qlangchain.errors import EngineStartError, MissingDependencyError
from qlangchain.runtimes import llamacpp
from qlangchain.runtimes.llamacpp import LlamaCpp
from qlangchain.types import EngineOptions

STAND_IN = Path(__file__).with_name("llama_server_stand_in.py")


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    script = tmp_path / "bin" / "llama-server"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "{STAND_IN}" "$@"\n')
    script.chmod(0o755)
    return script


def start(options: EngineOptions | None = None) -> tuple[LlamaCpp, int]:
    prepared = pipeline.prepare("demo", pipeline.requirements(hardware="cpu"))
    engine = LlamaCpp(prepared.artifact, options or EngineOptions(context_length=512, slots=2))
    engine.start()
    return engine, engine.supervisor.start(lambda _: None).engine_pid


@pytest.fixture(params=["named", "on PATH"])
def found(request: pytest.FixtureRequest, binary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "named":
        monkeypatch.setenv("QLANGCHAIN_LLAMA_SERVER", str(binary))
    else:
        monkeypatch.setenv("PATH", f"{binary.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("QLANGCHAIN_ENGINE", "llama-server")
    return binary


def test_a_binary_serves_like_the_wheel(found: Path) -> None:
    assert llamacpp.find_engine() == ("llama-server", found)
    engine, pid = start()
    try:
        endpoint = engine.start()
        there = get_chat_model(endpoint=endpoint.base_url, api_key=endpoint.api_key, temperature=0, max_tokens=20)
        text = there.invoke("What is GPTQ?").text
        assert text
        process = psutil.Process(pid)
        assert endpoint.api_key not in " ".join(process.cmdline())
        assert endpoint.api_key not in engine.supervisor.log
        os.kill(pid, signal.SIGKILL)
        assert engine.supervisor.wait_dead(10)
        endpoint = engine.start()
        again = get_chat_model(endpoint=endpoint.base_url, api_key=endpoint.api_key, temperature=0, max_tokens=20)
        assert again.invoke("What is GPTQ?").text == text
    finally:
        engine.stop()


def test_the_binary_ends_with_its_host(found: Path) -> None:
    engine, pid = start()
    host = engine.supervisor.start(lambda _: None).host_pid
    assert host != pid
    child = psutil.Process(pid)
    os.kill(host, signal.SIGKILL)
    child.wait(timeout=10)
    engine.stop()


def test_a_binary_that_cannot_load_says_why(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary.write_text("#!/bin/sh\necho 'error: no kernel image is available' >&2\nexit 3\n")
    monkeypatch.setenv("QLANGCHAIN_LLAMA_SERVER", str(binary))
    with pytest.raises(EngineStartError, match="no kernel image is available"):
        start()


def test_a_binary_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLANGCHAIN_LLAMA_SERVER", str(tmp_path / "nothing"))
    with pytest.raises(MissingDependencyError, match="which is no file"):
        llamacpp.find_engine()
    monkeypatch.delenv("QLANGCHAIN_LLAMA_SERVER")
    monkeypatch.setenv("QLANGCHAIN_ENGINE", "llama-server")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="llama-server"):
        llamacpp.find_engine()


def test_the_gpu_is_looked_for_in_a_process_of_its_own(found: Path) -> None:
    assert llamacpp.supports_gpu() is False
