"""Work in threads: done or not done, and never more at once than a limiter admits."""

from __future__ import annotations

import threading

import trio
import trio.testing

from supervisor.runtime.threads import Threads, run_in_thread


async def test_a_cancellation_waits_for_the_work_and_comes_after_it() -> None:
    begun, may_end, done = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        may_end.wait()
        done.append("work")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_in_thread, Threads().disk, work)
        await trio.to_thread.run_sync(begun.wait)
        nursery.cancel_scope.cancel(reason="test")
        assert done == []
        may_end.set()
    assert done == ["work"]


async def test_work_that_was_cancelled_before_it_began_is_not_done() -> None:
    done: list[str] = []
    with trio.CancelScope() as scope:
        scope.cancel(reason="test")
        await run_in_thread(Threads().disk, done.append, "work")
    assert done == []


async def test_one_kind_of_work_does_not_wait_for_another() -> None:
    threads = Threads()
    may_end = threading.Event()

    def work() -> None:
        may_end.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(int(threads.disk.total_tokens) + 5):
            nursery.start_soon(run_in_thread, threads.disk, work)
        await trio.testing.wait_all_tasks_blocked()
        assert threads.disk.borrowed_tokens == threads.disk.total_tokens
        assert await run_in_thread(threads.hashing, sum, [1, 2]) == 3
        may_end.set()
