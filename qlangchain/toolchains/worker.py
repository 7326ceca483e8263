"""Work in a child process, in our environment or in a toolchain's: JSON lines in and out.

The parent writes one line, {"job": name, "arguments": {...}, "parent_pid": n}, and later perhaps {"cancel": true}. The
child writes lines of three kinds:

    {"event": "progress", "stage": "layers", "done": 3, "total": 24}
    {"event": "result", "value": ...}
    {"event": "error", "type": "ProductionError", "message": "...", "hint": "...", "details": {...}}

Native code may crash in it or take too much memory without harm to the caller, a kill ends it with everything that it
has started, and an error comes back as the class that it was. What it prints otherwise is its log.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qlangchain import errors
from qlangchain.errors import CancelledError, ProductionError, QlangchainError
from qlangchain.toolchains import child

MODULE: Final = "qlangchain.toolchains.work"
_GRACE: Final = 10.0  # seconds that a cancelled child may take to tidy up
_LOOK: Final = 0.2  # seconds between two looks at cancel and memory


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: `done` of `total` steps of `stage`, and the seconds that are left, None while unknown."""

    stage: str
    done: int
    total: int
    seconds_left: float | None = None


def run(
    job: str,
    arguments: Mapping[str, Any],
    *,
    python: str | Path = sys.executable,
    progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
    memory_limit: int | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Any:
    """Do `job` ("package.module:function") in a child process and return its result, which is JSON.

    `memory_limit` is in bytes of resident memory, of the child and its own children. `directory` is where the child
    works; None is this process's own. Raises what the job raised, or

    Raises:
        ProductionError: the child died, or took more memory than it may; the end of its log is in the message.
        CancelledError: `cancel` was set.

    """
    if cancel is not None and cancel.is_set():
        raise _cancelled()
    process = subprocess.Popen(
        child.command(python, MODULE),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C interrupts the caller, who then ends the child
        env={**os.environ, **(environment or {})},
        cwd=directory,
    )
    log: collections.deque[str] = collections.deque(maxlen=200)
    events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_keep, args=(process.stderr, log), daemon=True).start()
    threading.Thread(target=_read, args=(process.stdout, events), daemon=True).start()
    try:
        _say(process, {"job": job, "arguments": dict(arguments), "parent_pid": os.getpid()})
        return _follow(process, events, log, progress, cancel, memory_limit)
    finally:
        child.end_group(process)


def _cancelled() -> CancelledError:
    return CancelledError("The work was cancelled.", hint="Call again to continue.")


def _follow(
    process: subprocess.Popen[bytes],
    events: queue.SimpleQueue[dict[str, Any] | None],
    log: collections.deque[str],
    progress: Callable[[Progress], None] | None,
    cancel: threading.Event | None,
    memory_limit: int | None,
) -> Any:
    pace = _Pace()
    deadline: float | None = None
    looked = 0.0
    while True:
        try:
            event = events.get(timeout=_LOOK)
        except queue.Empty:
            event = {}
        if memory_limit is not None and time.monotonic() - looked >= _LOOK:  # also while it tells of its progress
            looked = time.monotonic()
            if (taken := _resident(process.pid)) > memory_limit:
                raise ProductionError(
                    f"The work took {taken >> 20} MiB of memory, more than the {memory_limit >> 20} MiB that it may.",
                    hint="Allow more, or choose fewer or shorter calibration texts.",
                )
        if cancel is not None and cancel.is_set():
            if deadline is None:
                deadline = time.monotonic() + _GRACE
                _say(process, {"cancel": True})
            elif time.monotonic() > deadline:
                raise _cancelled()
        if event is None:
            raise _died(process, log)
        kind = event.get("event")
        if kind == "progress" and progress is not None:
            progress(pace.seen(str(event.get("stage")), int(event.get("done") or 0), int(event.get("total") or 0)))
        elif kind == "result":
            return event.get("value")
        elif kind == "error":
            raise _rebuilt(event)


def _died(process: subprocess.Popen[bytes], log: collections.deque[str]) -> ProductionError:
    code = process.wait()
    time.sleep(0.05)  # the log's last lines may still be on their way
    how = "was killed (out of memory?)" if code == -9 else f"ended with exit code {code}"
    said = "\n".join(list(log)[-15:])
    return ProductionError(
        f"The process that did the work {how}." + (f" It said last:\n{said}" if said else ""),
        hint="Nothing half-made is left; call again to continue.",
    )


def _rebuilt(event: Mapping[str, Any]) -> QlangchainError:
    """Return the error that the child raised, as the class of ours that it named."""
    named = getattr(errors, str(event.get("type")), None)
    cls = named if isinstance(named, type) and issubclass(named, QlangchainError) else ProductionError
    error = cls.__new__(cls)
    Exception.__init__(error, str(event.get("message")))
    error.message, error.hint = str(event.get("message")), str(event.get("hint") or "")
    details = event.get("details")
    error.__dict__.update(details if isinstance(details, dict) else {})
    return error


class _Pace:
    """Tells from the steps of a stage that are done how long the rest will take."""

    def __init__(self) -> None:
        self._stage, self._began, self._first = "", 0.0, 0

    def seen(self, stage: str, done: int, total: int) -> Progress:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._first = stage, now, done
        steps = done - self._first
        left = (now - self._began) / steps * (total - done) if steps > 0 and total >= done else None
        return Progress(stage, done, total, left)


def _say(process: subprocess.Popen[bytes], line: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):  # a child that died is reported by the end of its output
        process.stdin.write(json.dumps(line).encode() + b"\n")
        process.stdin.flush()


def _keep(stream: Any, log: collections.deque[str]) -> None:
    with stream:
        for line in stream:
            log.append(line.decode(errors="replace").rstrip())


def _read(stream: Any, events: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    with stream:
        for line in stream:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    events.put(event)
    events.put(None)


def _resident(pid: int) -> int:
    """The resident memory in bytes of a process and its children."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += int(each.memory_info().rss)
    return total
