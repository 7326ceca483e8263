"""Waiting for work no longer than agreed, whatever it hangs on."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from qlangchain.errors import HubUnreachableError

T = TypeVar("T")


def late() -> HubUnreachableError:
    """Return the error for an answer that has not come by the deadline."""
    return HubUnreachableError("The hub has not answered within the time allowed.")


def within(until: float, work: Callable[[], T], late: Callable[[], Exception] = late) -> T:
    """Return `work()`, or raise what `late` returns at the time `until` of `time.monotonic()`.

    The work runs in a thread of its own with a context of its own, because nothing else bounds the time of a name
    server that does not answer or of a server that sends its headers byte by byte. What is left behind at the
    deadline is a daemon thread that ends with the time limits of its own socket.
    """
    done = threading.Event()
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = work()
        except BaseException as error:  # raised in the thread that waits
            outcome["error"] = error
        done.set()

    threading.Thread(target=contextvars.Context().run, args=(run,), name="qlangchain-within", daemon=True).start()
    if not done.wait(max(0.0, until - time.monotonic())):
        raise late()
    if "error" in outcome:
        raise outcome["error"]
    value: T = outcome["value"]
    return value
