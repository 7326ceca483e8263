"""The bytes of one file: continued where an earlier try ended, hashed as they come, published when they are right."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qlangchain.artifacts.atomic import git_blob_sum
from qlangchain.artifacts.blobs import Stamp
from qlangchain.artifacts.locating import Source
from qlangchain.artifacts.partial import DisturbedError, Partial, signs_of_life
from qlangchain.artifacts.ranges import Span, in_order
from qlangchain.artifacts.retries import FetchPolicy, TransientError, malformed, persist, unreachable
from qlangchain.artifacts.stopping import Stopping
from qlangchain.artifacts.wire import Reply
from qlangchain.errors import ChecksumError, StoreLockedError

if TYPE_CHECKING:
    from qlangchain.artifacts.store import Store

logger = logging.getLogger(__name__)

CHUNK: Final = 1 << 20  # bytes of the buffer; a kill loses at most so many that had arrived
_SLICE: Final = 0.2  # seconds between two looks at who holds the lock


class Transfer:
    """One file on its way into the store. `position` of its bytes are there, and `moved` were fetched by this one."""

    def __init__(
        self, open_source: Callable[[Stopping], Source], store: Store, policy: FetchPolicy, stopping: Stopping
    ) -> None:
        """`open_source` makes the source, over connections of its own that end with the `Stopping` it is given."""
        self.position = 0
        self.moved = 0
        self._open_source = open_source
        self._source = open_source(stopping)
        self._wanted = self._source.wanted
        self._file = self._wanted.file
        self._store = store
        self._policy = policy
        self._stopping = stopping
        self._serves_ranges = True
        self._left: Stamp | None = None  # of the partial file at the end of the last attempt
        self._sums = self._no_sums()

    def run(self) -> Path:
        """Return the path of the published blob, fetching what is missing of it.

        Raises:
            StoreLockedError: another process holds the lock and shows no progress.
            ChecksumError: the bytes were wrong twice; they are in quarantine.
            DiskFullError: the disk is full; what has been written is kept.
            HubError, ModelNotFoundError, UnsafeSourceError: see `Source`.

        """
        with self._locked():
            known = self._store.known(self._file.digest)  # another process may just have finished it
            path = known or self._receive()
        self.position = self._file.size_bytes
        return path

    def close(self) -> None:
        """Close its connections."""
        self._source.session.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the file's lock, waiting as long as whoever has it makes progress."""
        partial = self._store.partial(self._file.digest)
        seen, since = signs_of_life(partial), time.monotonic()
        with contextlib.ExitStack() as stack:
            while True:
                lock = self._store.lock(self._file.digest, what=f"fetching {self._wanted}", timeout=_SLICE)
                try:
                    stack.enter_context(lock)
                    break
                except StoreLockedError as error:
                    now = signs_of_life(partial)
                    if now != seen:
                        seen, since = now, time.monotonic()
                    # The last wait was a slice of the whole, so the message is made for the whole.
                    waited = time.monotonic() - since
                    if waited >= self._policy.lock or self._stopping.left() <= 0:
                        said = error.message.rpartition(";")[0]
                        raise StoreLockedError(f"{said}, without progress for the last {waited:.1f} s.") from error
                    self._stopping.check()
            yield

    def _receive(self) -> Path:
        partial = self._store.partial(self._file.digest)
        for is_last in (False, True):
            persist(
                lambda: self._attempt(partial),
                position=lambda: self.position,
                policy=self._policy,
                stopping=self._stopping,
            )
            found, sha256 = self._sums.digest, self._sums.sha256
            if found == self._file.digest:
                also = None if self._file.sha256 else self._file.blob_id
                return self._store.publish_blob(partial, sha256, also=also)
            self._store.quarantine(partial, f"{self._wanted} should have the digest {self._file.digest}")
            self._restart()
            if is_last:
                break
            logger.warning("%s arrived with wrong bytes; it is fetched anew", self._wanted)
        raise ChecksumError(
            f"{self._wanted} came twice with the digest {found}, and {self._file.digest} was announced."
        )

    def _attempt(self, partial: Path) -> None:
        """Bring the partial file to its full size, or raise with what has arrived in it."""
        with Partial(partial, self._store.root) as file:
            size = file.size()
            if size > self._file.size_bytes:
                logger.warning("%s holds more than the whole file; it is begun anew", partial)
                file.truncate(0)
                size = 0
            if self._sums.position and file.stamp() != self._left:
                self._restart()  # it is not as the last attempt left it
            self._catch_up(file, size)
            try:
                if size < self._file.size_bytes:
                    self._fetch_missing(file, size)
            finally:
                self._left = None if file.is_disturbed else file.stamp()
            if self._left is None:
                self._restart()
                raise unreachable(f"Something else has written to {partial} while {self._wanted} came.")

    def _fetch_missing(self, file: Partial, size: int) -> None:
        url = self._source.locate()
        try:
            missing = self._file.size_bytes - size
            if self._policy.connections > 1 and missing > self._policy.range_from and self._serves_ranges:
                self._stream_ranges(file, url)
            else:
                self._stream(file, url)
        except TransientError as error:
            if error.status == 416:
                file.truncate(0)  # whatever it holds, the server does not know that much of it
                self._restart()
            raise
        except DisturbedError as error:
            raise unreachable(f"Something else has cut or lengthened the file of {self._wanted}.") from error

    def _restart(self) -> None:
        self._sums = self._no_sums()
        self.position = 0

    def _no_sums(self) -> _Sums:
        return _Sums(self._file.size_bytes, with_git=self._file.sha256 is None)

    def _catch_up(self, file: Partial, size: int) -> None:
        """Hash what lies in the partial file already."""
        buffer = memoryview(bytearray(CHUNK))
        touched = time.monotonic()
        while self._sums.position < size:
            self._stopping.check()
            count = file.read_at(self._sums.position, buffer)
            if not count:
                raise unreachable(f"{self._file.name} became shorter while it was read.")
            self._sums.add(buffer[:count])
            if time.monotonic() - touched > 1:
                file.touch()  # those who wait for the lock see that we live
                touched = time.monotonic()
        self.position = size

    def _stream(self, file: Partial, url: str) -> None:
        first = self._sums.position
        reply = self._source.open(url, first)
        try:
            skip, keep = self._source.body(reply, first)
            if skip:
                logger.info("%s ignores ranges; %d bytes come again", self._wanted, skip)
            for piece in read_body(reply, skip, keep, self._policy, self._stopping):
                self._take(file, piece)
        finally:
            reply.close()
        if self._sums.position < self._file.size_bytes:
            raise unreachable(f"{self._wanted} ended early.")

    def _stream_ranges(self, file: Partial, url: str) -> None:
        first, size, step = self._sums.position, self._file.size_bytes, self._policy.range_bytes
        spans = [(at, min(at + step, size)) for at in range(first, size, step)]
        contents = in_order(
            spans,
            lambda source, span: self._range(source, url, span),
            open_source=self._open_source,
            close_source=lambda source: source.session.close(),
            workers=self._policy.connections,
            stopping=self._stopping,
        )
        with contextlib.closing(contents):
            for content in contents:
                self._take(file, memoryview(content))

    def _range(self, source: Source, url: str, span: Span) -> bytearray:
        """Return the bytes of one range, which is kept in memory until its turn comes."""
        first, end = span
        reply = source.open(url, first, end - 1)
        try:
            _, keep = source.body(reply, first, end - 1)
            if reply.status != 206 or keep != end - first:
                self._serves_ranges = False  # the next attempt takes one stream
                raise malformed(f"Ranges of {self._wanted} are not served as asked.")
            content, at = bytearray(keep), 0
            for piece in read_body(reply, 0, keep, self._policy, source.session.stopping):
                content[at : at + len(piece)] = piece
                at += len(piece)
            return content
        finally:
            reply.close()

    def _take(self, file: Partial, piece: memoryview) -> None:
        self._stopping.check()
        file.append(piece, at=self._sums.position)
        self._sums.add(piece)
        self.position = self._sums.position
        self.moved += len(piece)


def read_body(reply: Reply, skip: int, keep: int, policy: FetchPolicy, stopping: Stopping) -> Iterator[memoryview]:
    """Yield the bytes of a body in pieces, which are valid until the next: `keep` of them after the first `skip`.

    Raises TransientError where the body ends early, or trickles so slowly that it counts as stalled.
    """
    buffer = memoryview(bytearray(CHUNK))
    left, since, moved = skip + keep, time.monotonic(), 0
    while left:
        stopping.check()
        count = reply.read(buffer[: min(len(buffer), left)])
        if not count:
            raise unreachable(f"The body ended {left:,} bytes early.")
        left -= count
        moved += count
        now = time.monotonic()
        if now - since > policy.stall:
            if moved < policy.slowest * policy.stall:
                raise unreachable(f"Only {moved:,} bytes came in {now - since:.0f} s.")
            since, moved = now, 0
        dropped = min(skip, count)
        skip -= dropped
        if count > dropped:
            yield buffer[dropped:count]


class _Sums:
    """The running digests of a file of `size` bytes, and how many of them they have seen."""

    def __init__(self, size: int, *, with_git: bool) -> None:
        self.position = 0
        self._sha256 = hashlib.sha256()
        self._git = git_blob_sum(size) if with_git else None

    def add(self, piece: memoryview) -> None:
        self._sha256.update(piece)
        if self._git is not None:
            self._git.update(piece)
        self.position += len(piece)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def digest(self) -> str:
        """What the listing shows of the file: git's blob id where that was asked for, or else SHA-256."""
        return self.sha256 if self._git is None else str(self._git.hexdigest())
