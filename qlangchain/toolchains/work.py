"""The child's side of `worker.py`: reads the request, does the job, says how far it is and what came of it."""

from __future__ import annotations

import errno
import importlib
import inspect
import json
import os
import sys
import threading
import time
import traceback
from typing import Any, Final, TextIO

from qlangchain.errors import CancelledError, DiskFullError, ProductionError, QlangchainError
from qlangchain.toolchains.child import end_with_parent, leave

_EVERY: Final = 0.05  # seconds between two events of one stage: a fast loop must not drown the pipe


def main() -> None:
    """Do one job."""
    request = json.loads(sys.stdin.readline())
    end_with_parent(request["parent_pid"])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print belongs into the log
    cancel = threading.Event()
    threading.Thread(target=_listen, args=(cancel,), daemon=True).start()
    try:
        value = _function(request["job"])(**request["arguments"], **_extras(request["job"], _Reporter(out), cancel))
        _write(out, {"event": "result", "value": value})
    except QlangchainError as error:
        details = {name: value for name, value in vars(error).items() if name not in ("message", "hint")}
        named = type(error).__name__
        _write(out, {"event": "error", "type": named, "message": error.message, "hint": error.hint, "details": details})
    except KeyboardInterrupt:
        _write(out, {"event": "error", "type": CancelledError.__name__, "message": "The work was interrupted."})
    except MemoryError:
        _write(out, {"event": "error", "type": ProductionError.__name__, "message": "There is not enough memory."})
    except Exception as error:
        traceback.print_exc()
        _write(out, {"event": "error", **_told(error)})
    sys.stderr.flush()
    os._exit(0)  # threads of native libraries may hold up an orderly exit


def _told(error: Exception) -> dict[str, str]:
    """What an error that is none of ours is called."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"type": DiskFullError.__name__, "message": f"The disk is full: {error}.", "hint": "Free some disk."}
    return {"type": ProductionError.__name__, "message": f"The work failed: {type(error).__name__}: {error}"[:1500]}


def _function(job: str) -> Any:
    module, _, name = job.partition(":")
    return getattr(importlib.import_module(module), name)


def _extras(job: str, progress: _Reporter, cancel: threading.Event) -> dict[str, Any]:
    """Give a job what it takes beside its arguments: `progress` and `cancel`."""
    takes = inspect.signature(_function(job)).parameters
    return {name: value for name, value in (("progress", progress), ("cancel", cancel)) if name in takes}


class _Reporter:
    """The `progress` of a job: called with a stage, the steps that are done, and their number."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._last, self._stage = out, 0.0, ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._last < _EVERY:
            return
        self._stage, self._last = stage, now
        _write(self._out, {"event": "progress", "stage": stage, "done": done, "total": total})


def _write(out: TextIO, event: dict[str, Any]) -> None:
    try:
        out.write(json.dumps(event, default=str) + "\n")
        out.flush()
    except BrokenPipeError:
        leave()


def _listen(cancel: threading.Event) -> None:
    for line in sys.stdin:
        if "cancel" in line:
            cancel.set()
    leave()  # stdin has ended, and with it the parent


if __name__ == "__main__":
    main()
