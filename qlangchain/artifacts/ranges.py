"""Several ranges of one file at once, handed over in the order of the file.

Storage often limits each connection, and a long way fills each one slowly; several are faster there. Because the
ranges are written in order, the partial file stays a clean beginning of the whole, and the digest is computed while
streaming. The price is memory for the ranges that have arrived before their turn.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from qlangchain.artifacts.stopping import Stopping

S = TypeVar("S")
T = TypeVar("T")
Span = tuple[int, int]  # the first byte, and the one after the last


def in_order(
    spans: Sequence[Span],
    fetch: Callable[[S, Span], T],
    *,
    open_source: Callable[[Stopping], S],
    close_source: Callable[[S], None],
    workers: int,
    stopping: Stopping,
) -> Generator[T, None, None]:
    """Yield `fetch(source, span)` for each span in turn, computed by `workers` threads.

    Each thread works with a source of its own. At most two spans per thread are fetched ahead of their turn. The
    first failure ends the others and is raised; so does closing the iterator.
    """
    own = stopping.child()
    idle: deque[S] = deque()

    def work(span: Span) -> T:
        try:
            source = idle.pop()
        except IndexError:
            source = open_source(own)
        try:
            return fetch(source, span)
        finally:
            idle.append(source)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="qlangchain-range")
    pending: deque[Future[T]] = deque()
    try:
        for span in spans:
            pending.append(pool.submit(work, span))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        own.stop()
        stopping.disown(own)
        pool.shutdown(wait=True, cancel_futures=True)
        for source in idle:
            with contextlib.suppress(OSError):
                close_source(source)
