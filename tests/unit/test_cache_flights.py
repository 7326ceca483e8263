"""Single flight: one leads, the others get its answer, and nobody waits for what cannot come."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qlangchain.models.cache import MemoryCache, flights
from qlangchain.models.cache.flights import Flights, Seat


class Work:
    """A generation that the test ends, and that counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.times = 0
        self.fails: list[BaseException] = []
        self.on_success: Callable[[], None] | None = None

    def __call__(self) -> str:
        self.times += 1
        number = self.times
        self.begun.release()
        assert self.may_end.wait(60)
        if self.fails:
            raise self.fails.pop()
        if self.on_success:
            self.on_success()
        return f"answer {number}"


def call(shared: Flights, work: Work, key: str = "key") -> str:
    with shared.flight(key) as seat:
        if seat.leads:
            seat.land(work())
        return str(seat.answer)


def waiting(shared: Flights, monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Count those who have begun to wait."""
    count = threading.Semaphore(0)
    wait, wait_async = Seat.wait, Seat.wait_async

    def counted(self: Seat) -> bool:
        count.release()
        return wait(self)

    async def counted_async(self: Seat) -> bool:
        count.release()
        return await wait_async(self)

    monkeypatch.setattr(Seat, "wait", counted)
    monkeypatch.setattr(Seat, "wait_async", counted_async)
    return count


def acquire(semaphore: threading.Semaphore, times: int = 1) -> None:
    for _ in range(times):
        assert semaphore.acquire(timeout=60)


@pytest.fixture
def shared() -> Flights:
    return Flights()


def test_followers_get_the_leader_s_answer(shared: Flights, monkeypatch: pytest.MonkeyPatch) -> None:
    work, waits = Work(), waiting(shared, monkeypatch)
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(call, shared, work) for _ in range(8)]
        acquire(waits, 7)
        work.may_end.set()
        assert {answer.result(60) for answer in answers} == {"answer 1"}
    assert work.times == 1
    assert call(shared, work) == "answer 2", "a flight that has ended is over"
    assert not shared._flights


def test_different_calls_do_not_wait_for_each_other(shared: Flights) -> None:
    work = Work()
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(call, shared, work, key) for key in "ab"]
        acquire(work.begun, 2)
        work.may_end.set()
        assert len({answer.result(60) for answer in answers}) == 2


def test_a_follower_takes_over_when_the_leader_fails(shared: Flights, monkeypatch: pytest.MonkeyPatch) -> None:
    work, waits = Work(), waiting(shared, monkeypatch)
    work.fails = [RuntimeError("the leader's own")]
    work.on_success = lambda: acquire(waits, 6)  # the others wait again, for the one who took over
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(call, shared, work) for _ in range(8)]
        acquire(waits, 7)
        work.may_end.set()
        failed = [answer for answer in answers if answer.exception(60)]
        assert len(failed) == 1, "the error reaches the call that met it, and no other"
        assert {answer.result(60) for answer in answers if answer not in failed} == {"answer 2"}


def test_failing_leaders_are_not_queued_behind_for_ever(shared: Flights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failure costs the next in line its whole time, so after two the rest goes at once."""
    work, waits = Work(), waiting(shared, monkeypatch)
    work.fails = [RuntimeError(str(number)) for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(call, shared, work) for _ in range(8)]
        acquire(waits, 7)
        work.may_end.set()
        assert sorted(str(answer.exception(60)) for answer in answers) == [str(number) for number in range(8)]
    assert not shared._flights


def test_a_leader_in_the_same_thread_is_not_waited_for(shared: Flights) -> None:
    with shared.flight("key") as outer:
        assert outer.leads
        with shared.flight("key") as inner:
            assert inner.leads
            inner.land("inner")
        outer.land("outer")
    assert not shared._flights


def test_a_leader_that_waits_for_its_own_threads_is_not_waited_for(shared: Flights) -> None:
    """As LangChain's executors run them: in other threads, with a copy of the context."""
    with shared.flight("key") as outer, ThreadPoolExecutor(1) as threads:

        def inner() -> bool:
            with shared.flight("key") as seat:
                return seat.leads

        assert threads.submit(contextvars.copy_context().run, inner).result(60)
        outer.land("outer")


def test_a_reader_who_stops_reading_is_not_waited_for(shared: Flights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "_PATIENCE", 0.01)

    def stream() -> Any:
        with shared.flight("key") as seat:
            for number in range(3):
                with seat.paused():
                    yield number
            seat.land("late")

    reader = stream()
    next(reader)
    with ThreadPoolExecutor(1) as threads:
        work = Work()
        work.may_end.set()
        assert threads.submit(call, shared, work).result(60) == "answer 1"
        assert list(reader) == [1, 2]
        assert threads.submit(call, shared, work).result(60) == "answer 2"
    assert not shared._flights


def test_no_wait_is_endless(shared: Flights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "_PATIENCE", 0.01)
    monkeypatch.setattr(flights, "_LONGEST", 0.05)
    stuck, quick = Work(), Work()
    quick.may_end.set()
    with ThreadPoolExecutor(2) as threads:
        leader = threads.submit(call, shared, stuck)
        acquire(stuck.begun)
        assert threads.submit(call, shared, quick).result(60) == "answer 1"
        stuck.may_end.set()
        assert leader.result(60) == "answer 1"


class AsyncWork:
    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.times = 0


async def acall(shared: Flights, work: AsyncWork) -> str:
    async with shared.aflight("key") as seat:
        if seat.leads:
            work.times += 1
            number = work.times
            work.begun.set()
            await work.may_end.wait()
            seat.land(f"answer {number}")
        return str(seat.answer)


async def until_waiting(count: threading.Semaphore, times: int) -> None:
    await asyncio.to_thread(acquire, count, times)


async def test_tasks_share_a_flight(shared: Flights, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, work = waiting(shared, monkeypatch), AsyncWork()
    tasks = [asyncio.create_task(acall(shared, work)) for _ in range(8)]
    await until_waiting(waits, 7)
    work.may_end.set()
    assert set(await asyncio.gather(*tasks)) == {"answer 1"}


async def test_a_cancelled_leader_hands_over(shared: Flights, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, work = waiting(shared, monkeypatch), AsyncWork()
    tasks = [asyncio.create_task(acall(shared, work)) for _ in range(4)]
    await until_waiting(waits, 3)
    tasks[0].cancel()
    await until_waiting(waits, 2)
    work.may_end.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == ["answer 2"] * 3


async def test_a_cancelled_follower_takes_nothing_along(shared: Flights, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, work = waiting(shared, monkeypatch), AsyncWork()
    tasks = [asyncio.create_task(acall(shared, work)) for _ in range(3)]
    await until_waiting(waits, 2)
    tasks[1].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await tasks[1]
    work.may_end.set()
    assert [await tasks[0], await tasks[2]] == ["answer 1"] * 2


async def test_threads_and_tasks_share_a_flight(shared: Flights, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, work = waiting(shared, monkeypatch), Work()
    with ThreadPoolExecutor(1) as threads:
        leader = threads.submit(call, shared, work)
        await asyncio.to_thread(acquire, work.begun)
        follower = asyncio.create_task(acall(shared, AsyncWork()))
        await until_waiting(waits, 1)
        work.may_end.set()
        assert await follower == leader.result(60) == "answer 1"
        slow = AsyncWork()
        first = asyncio.create_task(acall(shared, slow))
        await slow.begun.wait()
        second = threads.submit(call, shared, work)
        await until_waiting(waits, 1)
        slow.may_end.set()
        assert await first == await asyncio.wrap_future(second) == "answer 1"


async def test_a_blocking_call_in_the_loop_does_not_wait_for_a_task_of_the_loop(shared: Flights) -> None:
    slow, work = AsyncWork(), Work()
    work.may_end.set()
    task = asyncio.create_task(acall(shared, slow))
    await slow.begun.wait()
    assert call(shared, work) == "answer 1"  # waiting would stop the loop, and the task with it
    slow.may_end.set()
    assert await task == "answer 1"


async def test_a_call_inside_its_own_leader_does_not_wait(shared: Flights) -> None:
    async with shared.aflight("key") as outer:

        async def inner() -> bool:
            async with shared.aflight("key") as seat:
                return seat.leads

        assert await asyncio.gather(inner(), inner()) == [True, True]
        outer.land("outer")


async def test_the_caches_offer_it(shared: Flights) -> None:
    cache, other = MemoryCache(), MemoryCache()
    with cache.flight("prompt", "settings") as seat, other.flight("prompt", "settings") as another:
        assert seat.leads and another.leads
        seat.land("answer")
        assert seat.landed and not another.landed
    async with cache.aflight("prompt", "settings") as seat:
        assert seat.leads
