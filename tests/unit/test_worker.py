"""Work in a child process: results and errors come back as they are, and nothing outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from qlangchain.errors import CancelledError, ChecksumError, DiskFullError, HubBusyError, ProductionError
from qlangchain.toolchains import worker
from qlangchain.toolchains.worker import Progress

HERE = {"PYTHONPATH": str(Path(__file__).parent)}


def run(job: str, arguments: dict[str, Any] | None = None, **more: Any) -> Any:
    return worker.run(f"jobs:{job}", arguments or {}, environment=HERE, **more)


def gone(pid: int) -> bool:
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def written(note: Path) -> int:
    for _ in range(400):
        if note.exists() and note.read_text():
            return int(note.read_text())
        time.sleep(0.05)
    raise AssertionError("the job never began")


def test_a_result_comes_back_and_prints_do_not_disturb_it() -> None:
    assert run("add", {"a": 2, "b": 3}) == 5


def test_progress_arrives_in_order_and_ends_at_the_end() -> None:
    seen: list[Progress] = []
    assert run("count", {"to": 4}, progress=seen.append) == [0, 1, 2, 3]
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1].done == seen[-1].total == 4 and seen[-1].stage == "counting"


def test_errors_of_ours_come_back_as_they_are() -> None:
    with pytest.raises(HubBusyError, match="Too many") as caught:
        run("refuse")
    assert (caught.value.hint, caught.value.retry_after, caught.value.is_retryable) == ("Wait.", 7.5, True)
    with pytest.raises(ChecksumError, match=r"x\.bin is damaged"):
        run("find_damage", {"path": "x.bin"})


def test_other_errors_are_failures_of_the_production() -> None:
    with pytest.raises(ProductionError, match="KeyError"):
        run("fail")
    with pytest.raises(ProductionError, match="No module named"):
        worker.run("no_such_module:work", {})
    with pytest.raises(DiskFullError, match="disk is full"):
        run("fill_the_disk")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_an_error_with_the_last_words(how: signal.Signals) -> None:
    with pytest.raises(ProductionError, match="last words"):
        run("die", {"how": int(how)})


def test_what_was_cancelled_before_is_not_begun(tmp_path: Path) -> None:
    cancel, note = threading.Event(), tmp_path / "pid"
    cancel.set()
    with pytest.raises(CancelledError):
        run("wait", {"note": str(note)}, cancel=cancel)
    assert not note.exists()


def test_cancelling_lets_the_job_tidy_up(tmp_path: Path) -> None:
    cancel, note = threading.Event(), tmp_path / "pid"
    threading.Thread(target=lambda: (written(note), cancel.set())).start()
    assert run("wait", {"note": str(note)}, cancel=cancel) == "tidied up"


def test_a_job_that_does_not_listen_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_GRACE", 0.3)
    cancel, note = threading.Event(), tmp_path / "pid"
    threading.Thread(target=lambda: (written(note), cancel.set())).start()
    with pytest.raises(CancelledError):
        run("hang", {"note": str(note)}, cancel=cancel)
    assert gone(int(note.read_text()))


def test_too_much_memory_is_an_error_and_not_the_end_of_the_machine() -> None:
    with pytest.raises(ProductionError, match="more than the 200 MiB"):
        run("eat", {"mebibytes": 400}, memory_limit=200 << 20)


def test_memory_is_looked_at_while_progress_is_told_without_a_pause() -> None:
    with pytest.raises(ProductionError, match="more than the 200 MiB"):
        run("count_without_end", memory_limit=200 << 20)


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = (
        "from qlangchain.toolchains import worker; "
        f"worker.run('jobs:hang', {{'note': {str(note)!r}}}, environment={HERE!r})"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    pid = written(note)
    parent.kill()
    parent.wait()
    assert gone(pid)


def test_another_interpreter_needs_no_installation(tmp_path: Path) -> None:
    """An environment without qlangchain in it, reached by its interpreter alone."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    assert run("add", {"a": 1, "b": 1}, python=python) == 2
