"""Single flight: of identical calls that are under way at once, one generates and the others wait for its answer.

A flight ends when its leader lands an answer or leaves without one (an error, a cancellation, a stream that was
not read to its end); in the latter case one of those who waited takes over. Nobody waits for a leader that can
only go on when the waiter does: one in the same thread or context, or a stream whose reader has stopped reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Hashable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, Final

_PATIENCE: Final = 0.25  # seconds that waiters give a reader who is between two chunks
_LONGEST: Final = 600.0  # seconds after which a waiter generates for itself, whatever the reason for the delay
LOSSES: Final = 2  # leaders seen failing before a waiter stops queueing behind yet another one

NOTHING: Final = object()  # what a flight ends with that had no answer


class _Flight:
    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.paused_at: float | None = None
        self.end: Future[Any] = Future()
        self.end.set_running_or_notify_cancel()  # from here on no waiter can cancel it

    def is_stuck(self, waited: float) -> bool:
        paused = self.paused_at
        return waited > _LONGEST or (paused is not None and time.monotonic() - paused > _PATIENCE)


# The flights that this context leads. A copy of it goes to the threads and tasks that the leader starts.
_leading: ContextVar[tuple[_Flight, ...]] = ContextVar("leading", default=())


class Seat:
    """One caller's part in a flight: it `leads`, and then lands an answer or leaves; or it waits.

    A caller that cannot wait, because the leader waits for it, leads as well, for itself alone.
    """

    def __init__(self, flights: Flights, key: Hashable, flight: _Flight, *, leads: bool) -> None:
        self.leads = leads
        self.answer: Any = NOTHING
        self._flights, self._key, self._flight = flights, key, flight

    @property
    def landed(self) -> bool:
        """Whether there is an answer."""
        return self.answer is not NOTHING

    def land(self, answer: Any) -> None:
        """End the flight with an answer, which must not be changed any more. Nothing where another leads it."""
        if self.leads:
            self.answer = answer
            self._end()

    def leave(self) -> None:
        """End the flight without an answer, unless it has landed or another leads it."""
        if self.leads:
            self._end()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Mark the time that a stream's leader is in the hands of its reader."""
        self._flight.paused_at = time.monotonic()
        try:
            yield
        finally:
            self._flight.paused_at = None

    def wait(self) -> bool:
        """Wait in this thread; return whether there is an answer."""
        began = time.monotonic()
        while not self._flight.is_stuck(time.monotonic() - began):
            with contextlib.suppress(TimeoutError):
                self.answer = self._flight.end.result(_PATIENCE)
                return self.landed
        self._flights.forget(self._key, self._flight)
        return False

    async def wait_async(self) -> bool:
        """Do what `wait` does, in an event loop."""
        began = time.monotonic()
        end = asyncio.wrap_future(self._flight.end)
        try:
            while not self._flight.is_stuck(time.monotonic() - began):
                await asyncio.wait([end], timeout=_PATIENCE)
                if end.done():
                    self.answer = end.result()
                    return self.landed
        finally:
            end.cancel()  # this caller's view of it only
        self._flights.forget(self._key, self._flight)
        return False

    def _end(self) -> None:
        self._flights.forget(self._key, self._flight)
        _leading.set(tuple(flight for flight in _leading.get() if flight is not self._flight))
        if not self._flight.end.done():
            self._flight.end.set_result(self.answer)


class Flights:
    """The flights of this process, by key. For any mixture of threads and event loops."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight] = {}
        self._lock = threading.Lock()

    def take(self, key: Hashable, *, blocking: bool, alone: bool = False) -> Seat:
        """Take a seat at once: lead a new flight, or follow the one that is under way.

        Args:
            key: what makes calls identical.
            blocking: the caller would wait with its thread, so it cannot wait for a leader in that thread.
            alone: lead in any case, without others.

        """
        with self._lock:
            there = self._flights.get(key)
            if there is not None and not alone:
                mine = there in _leading.get() or (blocking and there.thread == threading.get_ident())
                if not mine:
                    return Seat(self, key, there, leads=False)
            flight = _Flight()
            if there is None:
                self._flights[key] = flight
        _leading.set((*_leading.get(), flight))
        return Seat(self, key, flight, leads=True)

    @contextlib.contextmanager
    def flight(self, key: Hashable) -> Iterator[Seat]:
        """Enter with a seat that leads, or that has the leader's answer already.

        Example:
            >>> with flights.flight("key") as seat:  # doctest: +SKIP
            ...     if seat.leads:
            ...         seat.land(generate())
            ...     print(seat.answer)

        """
        losses = 0
        while not (seat := self.take(key, blocking=True, alone=losses >= LOSSES)).leads and not seat.wait():
            losses += 1
        try:
            yield seat
        finally:
            seat.leave()

    @contextlib.asynccontextmanager
    async def aflight(self, key: Hashable) -> AsyncIterator[Seat]:
        """Do what `flight` does, in an event loop."""
        losses = 0
        while not (seat := self.take(key, blocking=False, alone=losses >= LOSSES)).leads and not (
            await seat.wait_async()
        ):
            losses += 1
        try:
            yield seat
        finally:
            seat.leave()

    def forget(self, key: Hashable, flight: _Flight) -> None:
        """Let no further caller follow this flight."""
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]

    def forget_after_fork(self) -> None:
        """Drop the parent's flights in a forked child, where nobody will end them."""
        self._flights = {}
        self._lock = threading.Lock()


shared: Final = Flights()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared.forget_after_fork)
