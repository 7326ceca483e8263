"""Jobs that behave well, badly and not at all, for the tests of the worker that runs them."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from qlangchain.errors import ChecksumError, HubBusyError


def add(a: int, b: int) -> int:
    print("this is no event")
    return a + b


def count(to: int, progress: Any) -> list[int]:
    for done in range(to + 1):
        progress("counting", done, to)
    return list(range(to))


def refuse() -> None:
    raise HubBusyError("Too many requests.", hint="Wait.", retry_after=7.5)


def find_damage(path: str) -> None:
    raise ChecksumError(f"{path} is damaged.")


def fail() -> None:
    raise KeyError("nothing")


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def die(how: int) -> None:
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), how)
    time.sleep(60)


def wait(cancel: Any, note: str) -> str:
    Path(note).write_text(str(os.getpid()))
    cancel.wait(60)
    return "tidied up"


def hang(note: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(note).write_text(str(os.getpid()))
    time.sleep(300)


def litter(source: str, target: str, **settings: Any) -> None:
    """Like other people's quantizers: writes logs wherever it was started, and a directory that is no model."""
    Path("logs").mkdir()
    Path("logs/run.log").write_text(source)
    Path(target, "config.json").write_text("{}")


def count_without_end(progress: Any) -> None:
    eaten = bytearray(400 << 20)
    for done in range(1200):
        progress("counting", done, len(eaten))
        time.sleep(0.05)


def eat(mebibytes: int) -> int:
    eaten = [b"x" * (1 << 20) for _ in range(mebibytes)]
    time.sleep(60)
    return len(eaten)
