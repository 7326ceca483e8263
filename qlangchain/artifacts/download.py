"""Fetching files into the store: verified, resumable, several at once, bounded in time, and cancellable.

huggingface_hub's own download compares sizes only, begins anew after a kill, waits for a stopped process for ever and
gives up on the first connection reset; here the bytes are taken from the hub's storage by our own code.

The thread that calls `fetch` transfers nothing: it watches the time, the wish to cancel and Ctrl-C, and calls
`progress`, so that none of these waits for a silent server. Xet, the hub's protocol by chunks, is not used.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qlangchain.artifacts.locating import Source, Wanted
from qlangchain.artifacts.redirects import Rules
from qlangchain.artifacts.retries import FetchPolicy, persist
from qlangchain.artifacts.stopping import StoppedError, Stopping
from qlangchain.artifacts.transfer import Transfer, read_body
from qlangchain.artifacts.wire import Session, bearer
from qlangchain.errors import (
    DiskFullError,
    FetchCancelledError,
    HubReplyError,
    HubUnreachableError,
    InvalidInputError,
)

if TYPE_CHECKING:
    from qlangchain.artifacts.store import Store

__all__ = ["FetchPolicy", "FetchProgress", "Wanted", "fetch", "read_range"]

logger = logging.getLogger(__name__)

_TICK: Final = 0.1  # seconds between two looks at the time, and two calls of `progress`
_GRACE: Final = 1.0  # seconds for threads to end after they were told to; all but a name server's silence ends them
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """How far a fetch is. `done_bytes` includes what an earlier call left; `moved_bytes` have come in this one.

    `files` and `files_done` count files, `seconds` is the time since the first byte was asked for.
    """

    done_bytes: int
    total_bytes: int
    moved_bytes: int
    seconds: float
    files: int
    files_done: int

    @property
    def rate(self) -> float:
        """Bytes per second of this call so far."""
        return self.moved_bytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """The time that the rest takes at this rate, None where nothing has come yet."""
        return (self.total_bytes - self.done_bytes) / self.rate if self.rate else None


def fetch(
    files: Sequence[Wanted],
    store: Store,
    *,
    endpoint: str,
    token: str | None = None,
    deadline: float | None = None,
    progress: Callable[[FetchProgress], None] | None = None,
    cancel: threading.Event | None = None,
    policy: FetchPolicy = FetchPolicy(),  # noqa: B008  (a frozen value)
) -> dict[str, Path]:
    """Return the paths of the files' blobs in the store by the files' names, fetching what is missing.

    No byte is asked for before every name, digest and size has been checked and the disk has room for all of them.
    `deadline` is in seconds for the whole call; the policy bounds each step in any case. `progress` is called in
    this thread, about ten times a second, and at the end. Setting `cancel` ends the call within a moment. However it
    ends, what has arrived is kept, and the next call of any process goes on there.

    Raises:
        FetchCancelledError: `cancel` was set.
        HubUnreachableError: the network or the hub failed for too long, or the deadline has passed.
        HubBusyError: the hub asks to wait for longer than we may.
        HubReplyError: answers contradict the listing or each other, or are not what was asked for.
        AccessDeniedError, ModelNotFoundError, RevisionNotFoundError: the hub refuses.
        ChecksumError: the bytes were not those of the listing, twice.
        UnsafeSourceError: a file's name, or an address that the hub sends us to, could do harm.
        DiskFullError: the disk has no room, or got full.
        StoreLockedError: another process has the same file and shows no progress.
        InvalidInputError: two files of the same name, or an endpoint, repository or token that cannot be.

    """
    authorization = bearer(token)
    rules = Rules.of(endpoint, has_token=authorization is not None)
    by_digest: dict[str, Wanted] = {}
    names: dict[str, str] = {}
    for wanted in files:
        wanted.check()
        digest = wanted.file.digest
        if names.setdefault(wanted.file.name, digest) != digest:
            raise InvalidInputError(f"Two files are named {wanted.file.name}.", hint="Fetch them in two calls.")
        by_digest.setdefault(digest, wanted)
    paths = {digest: path for digest in by_digest if (path := store.known(digest))}
    missing = [wanted for digest, wanted in by_digest.items() if digest not in paths]
    _check_room(missing, store, policy)

    stopping = Stopping(None if deadline is None else time.monotonic() + deadline)

    # Many shards at once fill the line as many ranges of one would.
    at_once = max(1, min(policy.files, len(missing)))
    policy = replace(policy, files=at_once, connections=max(1, policy.connections // at_once))

    def transfer_of(wanted: Wanted) -> Transfer:
        def open_source(stopping: Stopping) -> Source:
            return Source(wanted, endpoint, Session(rules, authorization, policy, stopping))

        return Transfer(open_source, store, policy, stopping)

    crew = _Crew([transfer_of(wanted) for wanted in missing], [wanted.file.digest for wanted in missing], stopping)
    total = sum(wanted.file.size_bytes for wanted in by_digest.values())
    have = total - sum(wanted.file.size_bytes for wanted in missing)
    begun = time.monotonic()

    def report() -> None:
        if progress:
            done = have + sum(transfer.position for transfer in crew.transfers)
            moved = sum(transfer.moved for transfer in crew.transfers)
            seconds = time.monotonic() - begun
            progress(FetchProgress(done, total, moved, seconds, len(by_digest), len(paths) + len(crew.paths)))

    try:
        if missing and cancel is not None and cancel.is_set():
            raise FetchCancelledError("The download was cancelled before it began.")
        crew.start(policy.files)
        while not crew.is_done:
            crew.changed.wait(min(_TICK, max(0.0, stopping.left())))
            crew.changed.clear()
            if crew.errors:
                raise crew.errors[0]
            if cancel is not None and cancel.is_set():
                raise FetchCancelledError("The download was cancelled.")
            if stopping.left() <= 0 and not crew.is_done:
                raise _late(crew, deadline)
            report()
    finally:
        crew.end()
    report()
    paths |= crew.paths
    return {name: paths[digest] for name, digest in names.items()}


def read_range(
    wanted: Wanted,
    first: int,
    count: int,
    *,
    endpoint: str,
    token: str | None = None,
    deadline: float | None = None,
    policy: FetchPolicy = FetchPolicy(),  # noqa: B008  (a frozen value)
) -> bytes:
    """Return at most `count` bytes of a file from byte `first` on, without the store: for reading its header.

    The hub's HEAD answer is held against the listing as in `fetch`. The bytes cannot be verified, because the digest
    is that of the whole file. At the file's end there are fewer, and past it none.

    Raises:
        HubUnreachableError, HubBusyError, HubReplyError, AccessDeniedError, ModelNotFoundError, RevisionNotFoundError,
        UnsafeSourceError, InvalidInputError: as in `fetch`.

    """
    wanted.check()
    last = min(first + count, wanted.file.size_bytes) - 1
    if first < 0 or last < first:
        return b""
    authorization = bearer(token)
    rules = Rules.of(endpoint, has_token=authorization is not None)
    stopping = Stopping(None if deadline is None else time.monotonic() + deadline)
    source = Source(wanted, endpoint, Session(rules, authorization, policy, stopping))
    content = bytearray()

    def attempt() -> None:
        at = first + len(content)
        reply = source.open(source.locate(), at, last)
        try:
            skip, keep = source.body(reply, at, last)
            if skip > policy.range_bytes:
                raise HubReplyError(f"The storage of {wanted} does not serve ranges, and the whole file would come.")
            for piece in read_body(reply, skip, keep, policy, stopping):
                content.extend(piece)
        finally:
            reply.close()

    # Ends a server that trickles; a read that waits in silence ends by the policy's time for that.
    timer = threading.Timer(stopping.left(), stopping.stop) if deadline is not None else None
    try:
        if timer:
            timer.daemon = True
            timer.start()
        while first + len(content) <= last:
            persist(attempt, position=lambda: len(content), policy=policy, stopping=stopping)
    except StoppedError:
        raise HubUnreachableError(f"{wanted} could not be read within {deadline:g} s.") from None
    finally:
        if timer:
            timer.cancel()
        source.session.close()
    return bytes(content)


class _Crew:
    """The threads of one fetch, and what has become of their files."""

    def __init__(self, transfers: list[Transfer], digests: list[str], stopping: Stopping) -> None:
        self.transfers = transfers
        self.paths: dict[str, Path] = {}
        self.errors: list[BaseException] = []
        self.changed = threading.Event()
        self.stopping = stopping
        self._waiting = deque(zip(digests, transfers, strict=True))
        self._threads: list[threading.Thread] = []

    @property
    def is_done(self) -> bool:
        return len(self.paths) == len(self.transfers)

    def start(self, most: int) -> None:
        for _ in range(min(most, len(self.transfers))):
            # Daemons, so that a program can end while a name server is silent.
            thread = threading.Thread(target=self._work, name="qlangchain-fetch", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while not self.stopping.event.is_set():
            try:
                digest, transfer = self._waiting.popleft()
            except IndexError:
                return
            try:
                self.paths[digest] = transfer.run()
            except StoppedError:
                return
            except BaseException as error:
                self.errors.append(error)
                return
            finally:
                transfer.close()
                self.changed.set()

    def end(self) -> None:
        """Tell the threads to end, and wait for them for a moment."""
        if not self.is_done:
            self.stopping.stop()
        until = time.monotonic() + _GRACE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


def _check_room(missing: Sequence[Wanted], store: Store, policy: FetchPolicy) -> None:
    """Raise DiskFullError where what is missing of all files, and the margin, do not fit on the disk."""
    needed = 0
    for wanted in missing:
        try:
            there = store.partial(wanted.file.digest).lstat().st_size
        except FileNotFoundError:
            there = 0
        needed += max(0, wanted.file.size_bytes - there)
    free = store.free_bytes()
    if missing and free < needed + policy.margin_bytes:
        raise DiskFullError(
            f"{needed / _GIB:.2f} GiB are missing, and {free / _GIB:.2f} GiB of the disk of {store.root} are free "
            f"({policy.margin_bytes / _GIB:.2f} GiB of them stay so).",
            hint="Free some room (`qlangchain cache gc`), set QLANGCHAIN_HOME elsewhere, or take a smaller format.",
        )


def _late(crew: _Crew, deadline: float | None) -> BaseException:
    """The error for a deadline that has passed: a thread's own reason, where it has one."""
    crew.end()
    if crew.errors:
        return crew.errors[0]
    trouble = crew.stopping.trouble
    return HubUnreachableError(
        f"The {deadline:g} s for the download have passed{'; before that: ' + trouble if trouble else '.'}"
    )
