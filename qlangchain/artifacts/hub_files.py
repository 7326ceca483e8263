"""Ranges of a file on the hub, read into memory: for headers and small text files, never for weights.

The way is that of a download (`locating.py`, `wire.py`): the hub's HEAD answer is held against the listing first, and
redirects, announced ranges and sizes are checked before a byte is used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeVar

from qlangchain.artifacts.listing import RemoteFile
from qlangchain.artifacts.locating import Source, Wanted
from qlangchain.artifacts.redirects import Rules
from qlangchain.artifacts.retries import FetchPolicy, TransientError, persist
from qlangchain.artifacts.stopping import Stopping
from qlangchain.artifacts.transfer import read_body
from qlangchain.artifacts.wire import Session, bearer
from qlangchain.artifacts.within import late as nothing_came
from qlangchain.artifacts.within import within
from qlangchain.errors import ArtifactError, HubReplyError, InvalidInputError

T = TypeVar("T")

# Seconds where nothing else is said. A person waits for these answers, other than for a download.
POLICY: Final = FetchPolicy(
    attempts=6, first_wait=0.25, longest_wait=4.0, longest_retry_after=60.0, connect=10.0, stall=10.0
)
_MAX_SKIP: Final = 8 << 20  # bytes; read and dropped where a server ignores ranges


def patiently(attempt: Callable[[], T], until: float, stopping: Stopping) -> T:
    """Return `attempt()`, tried again by our policy (`retries.persist`), but not beyond the time `until`.

    Raises what `persist` raises, or at the deadline the last failure, HubUnreachableError where there was none.
    """
    last: list[ArtifactError] = []

    def noted() -> T:
        try:
            return attempt()
        except TransientError as error:
            last[:] = [error.final]
            raise

    def late() -> Exception:
        reason = last[0] if last else nothing_came()
        stopping.stop()  # who still waits in a socket is woken, and fails for that reason
        return reason

    work = partial(persist, noted, position=lambda: 0, policy=POLICY, stopping=stopping)
    return within(until, work, late)


class FileReader:
    """An open file of the hub at a pinned commit. `until` is a time of `time.monotonic()` for all of its reading."""

    def __init__(
        self, repo: str, commit: str, file: RemoteFile, *, endpoint: str, token: str | None, until: float
    ) -> None:
        """Nothing is asked before the first `read`.

        Raises:
            InvalidInputError, HubReplyError, UnsafeSourceError: something about the file cannot be right.

        """
        self.wanted, self.file = Wanted(repo, commit, file), file
        self.wanted.check()
        self._until, self._stopping = until, Stopping(until)
        rules = Rules.of(endpoint, has_token=token is not None)
        self._session = Session(rules, bearer(token), POLICY, self._stopping)
        self._source = Source(self.wanted, endpoint, self._session)
        self._url: str | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.stop()
        self._session.close()

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`, exactly so many.

        Raises:
            ModelNotFoundError, AccessDeniedError, HubBusyError: what the hub says; see `refusals`.
            HubReplyError: another range, size, commit or digest than the listing has.
            HubUnreachableError: no connection, or not all of it by the deadline.
            UnsafeSourceError: a redirect to an address that nothing may be fetched from.

        """
        if not 0 <= start <= stop <= self.file.size_bytes:
            raise InvalidInputError(f"Bytes {start} to {stop} of {self.file.name} are none of its bytes.")
        if start == stop:
            return b""
        with self._lock:
            return patiently(lambda: self._attempt(start, stop), self._until, self._stopping)

    def _attempt(self, start: int, stop: int) -> bytes:
        url, self._url = self._url, None
        url = url or self._source.locate()
        reply = self._source.open(url, start, None if stop == self.file.size_bytes else stop - 1)
        try:
            skip, keep = self._source.body(reply, start, stop - 1)
            if skip > _MAX_SKIP:
                raise HubReplyError(f"Ranges of {self.wanted} are not served, so its header cannot be read.")
            if keep < stop - start:
                raise HubReplyError(f"Only a part of a range of {self.wanted} is served.")
            data = b"".join(map(bytes, read_body(reply, skip, stop - start, POLICY, self._stopping)))
        finally:
            reply.close()
        self._url = url  # good for the next range; a signed address that has expired is asked for anew
        return data
