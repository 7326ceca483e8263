"""What is tried again, how often, and how long in between: one policy for all that a transfer meets."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from qlangchain.artifacts.stopping import Stopping
from qlangchain.errors import ArtifactError, HubBusyError, HubReplyError, HubUnreachableError

if TYPE_CHECKING:
    import tenacity

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PROGRESS: Final = 256 * 1024  # bytes; less than this between failures is not worth another round of attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """The limits of a fetch, in seconds where nothing else is said.

    `attempts` may fail in a row without at least 256 KiB of progress. A wait between them grows from `first_wait` to
    `longest_wait`, with jitter; what a server asks for with Retry-After is honoured up to `longest_retry_after`, and
    beyond it the fetch fails at once. `stall` is the longest silence of a connection; a transfer that moves less than
    `slowest` bytes per second during such a time counts as stalled too. `lock` is how long another process that holds
    a file's lock may show no progress. `margin_bytes` of the disk stay free.

    `files` are fetched at once. Where they are fewer than `connections`, these are shared among those with more than
    `range_from` missing bytes, in ranges of `range_bytes`; twice as many ranges as connections are held in memory.
    """

    attempts: int = 6
    first_wait: float = 0.5
    longest_wait: float = 20.0
    longest_retry_after: float = 90.0
    connect: float = 10.0
    stall: float = 30.0
    slowest: int = 1024
    lock: float = 60.0
    margin_bytes: int = 256 << 20
    files: int = 4
    connections: int = 4
    range_from: int = 64 << 20
    range_bytes: int = 8 << 20


class TransientError(Exception):
    """Something that may pass. `final` is the error where it does not.

    `retry_after` is what the server asks to wait, in seconds, `status` what HTTP calls the failure; each may be None.
    """

    def __init__(self, final: ArtifactError, *, retry_after: float | None = None, status: int | None = None) -> None:
        super().__init__(final.message)
        self.final = final
        self.retry_after = retry_after
        self.status = status


def unreachable(what: str) -> TransientError:
    """The way to a server failed."""
    return TransientError(HubUnreachableError(what))


def malformed(what: str) -> TransientError:
    """A server, or something in between, sent what cannot be used."""
    return TransientError(HubReplyError(what))


def persist(attempt: Callable[[], T], *, position: Callable[[], int], policy: FetchPolicy, stopping: Stopping) -> T:
    """Call `attempt` until it returns, as long as that makes sense; `position` is how many bytes are there.

    Only TransientError is tried again. Attempts without progress are counted, and no wait goes beyond the deadline.

    Raises:
        HubBusyError: the server asks to wait for longer than we may.
        ArtifactError: what `attempt` raises, or the `final` error of its last failure.

    """
    import tenacity

    fruitless, reached = 0, position()

    def count(state: tenacity.RetryCallState) -> bool:
        """Whether to stop, after each failure."""
        nonlocal fruitless, reached
        now = position()
        fruitless, reached = (1, now) if now >= reached + _PROGRESS else (fruitless + 1, min(now, reached))
        return fruitless >= policy.attempts or stopping.left() <= state.upcoming_sleep

    def wait(state: tenacity.RetryCallState) -> float:
        error = _failure(state)
        asked = error.retry_after
        if asked is not None and (asked > policy.longest_retry_after or asked >= stopping.left()):
            raise HubBusyError(
                f"{error} We wait at most {min(policy.longest_retry_after, stopping.left()):,.0f} s.", retry_after=asked
            ) from error
        longest = min(policy.longest_wait, policy.first_wait * 2 ** max(0, fruitless))
        return max(random.uniform(policy.first_wait / 2, longest), asked or 0.0)  # noqa: S311

    def note(state: tenacity.RetryCallState) -> None:
        error = _failure(state)
        stopping.trouble = str(error)
        logger.info("%s Trying again in %.1f s.", error, state.upcoming_sleep)

    def sleep(seconds: float) -> None:
        stopping.event.wait(seconds)
        stopping.check()

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        wait=wait,
        stop=count,
        sleep=sleep,
        before_sleep=note,
        reraise=True,
    )
    begun = time.monotonic()
    try:
        return retrying(attempt)
    except TransientError as error:
        stopping.check()
        number = retrying.statistics.get("attempt_number", 1)
        final = error.final
        final.add_note(f"{number} attempts in {time.monotonic() - begun:.1f} s.")
        raise final from error


def _failure(state: tenacity.RetryCallState) -> TransientError:
    """What the last attempt raised."""
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, TransientError)
    return error
