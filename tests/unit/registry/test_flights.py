"""One piece of work for many who wait: who may leave, who ends it, who sees its failure."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from supervisor.registry.flights import Flights
from supervisor.runtime.mailbox import ActorGone


class Work:
    """Something that takes until it is released."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.release = trio.Event()

    async def __call__(self) -> str:
        self.begun += 1
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        return "done"


@pytest.fixture
async def flights() -> AsyncIterator[Flights]:
    flights = Flights()
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: flights.run(task_status=task_status))
        yield flights
        nursery.cancel_scope.cancel(reason="the test is over")


class Waiter:
    """Somebody who asks, and may leave."""

    def __init__(self, flights: Flights, work: Work, key: str = "x") -> None:
        self.scope = trio.CancelScope()
        self.got: object = None
        self._ask = flights.join, key, work

    async def __call__(self) -> None:
        join, key, work = self._ask
        with self.scope:
            self.got = await join(key, work)


async def test_the_work_is_done_once_for_all(flights: Flights) -> None:
    work = Work()
    waiters = [Waiter(flights, work) for _ in range(10)]
    async with trio.open_nursery() as nursery:
        for waiter in waiters:
            nursery.start_soon(waiter)
        await wait_all_tasks_blocked()
        work.release.set()
    assert [waiter.got for waiter in waiters] == ["done"] * 10
    assert work.begun == 1


async def test_different_keys_are_different_work(flights: Flights) -> None:
    work = Work()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Waiter(flights, work, "x"))
        nursery.start_soon(Waiter(flights, work, "y"))
        await wait_all_tasks_blocked()
        assert work.begun == 2
        work.release.set()


async def test_who_asked_first_may_leave_without_ending_it_for_the_others(
    flights: Flights,
) -> None:
    work = Work()
    first, second = Waiter(flights, work), Waiter(flights, work)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await wait_all_tasks_blocked()
        nursery.start_soon(second)
        await wait_all_tasks_blocked()
        first.scope.cancel(reason="it leaves")
        await wait_all_tasks_blocked()
        work.release.set()
    assert (first.got, second.got) == (None, "done")
    assert (work.begun, work.cancelled) == (1, 0)


async def test_the_last_one_who_leaves_ends_it(flights: Flights) -> None:
    work = Work()
    waiters = [Waiter(flights, work) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for waiter in waiters:
            nursery.start_soon(waiter)
        await wait_all_tasks_blocked()
        for waiter in waiters:
            assert work.cancelled == 0
            waiter.scope.cancel(reason="it leaves")
            await wait_all_tasks_blocked()
        assert work.cancelled == 1
        work.release.set()
        later = Waiter(flights, work)
        nursery.start_soon(later)
    assert later.got == "done"
    assert work.begun == 2


async def test_who_comes_while_it_is_being_ended_begins_anew(flights: Flights) -> None:
    ended = trio.Event()

    async def slow_to_end() -> str:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await ended.wait()
        raise AssertionError("unreachable")

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as leaving:
            leaving.cancel(reason="it leaves at once")
            await flights.join("x", slow_to_end)
        work = Work()
        work.release.set()
        assert await flights.join("x", work) == "done"
        ended.set()
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_failure_reaches_everybody_and_is_not_kept(flights: Flights) -> None:
    release = trio.Event()

    async def fail() -> None:
        await release.wait()
        raise KeyError("no")

    failed = []

    async def ask() -> None:
        try:
            await flights.join("x", fail)
        except KeyError as exc:
            failed.append(str(exc))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        release.set()
    assert failed == ["'no'"] * 3
    work = Work()
    work.release.set()
    assert await flights.join("x", work) == "done"


async def test_the_end_of_the_owner_fails_who_waits() -> None:
    flights = Flights()
    with pytest.raises(ActorGone):
        await flights.join("x", Work())
    seen = []

    async def ask() -> None:
        with pytest.raises(ActorGone):
            await flights.join("x", Work())
        seen.append(True)

    async with trio.open_nursery() as asking, trio.open_nursery() as owner:
        await owner.start(lambda task_status: flights.run(task_status=task_status))
        asking.start_soon(ask)
        await wait_all_tasks_blocked()
        owner.cancel_scope.cancel(reason="the registry restarts")
    assert seen == [True]
