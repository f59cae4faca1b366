"""Supervision: restarts within an intensity, and never a failure that nobody hears of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from supervisor.runtime.logs import log
from supervisor.runtime.supervise import RestartLimitExceeded, RestartPolicy, supervise

POLICY = RestartPolicy(intensity=3, period_seconds=60, delay_seconds=1)
Actor = Callable[..., Any]


@pytest.fixture
def crashes() -> Iterator[list[str]]:
    """The crashes that are logged while the test runs."""
    found: list[str] = []
    handler = log.add(lambda message: found.append(message.record["message"]), level="ERROR")
    yield found
    log.remove(handler)


def failing_after(seconds: list[float]) -> tuple[Actor, list[float]]:
    """Return an actor that fails after each of `seconds` in turn, and then works for ever."""
    starts: list[float] = []

    async def run(*, task_status: trio.TaskStatus[int]) -> None:
        starts.append(trio.current_time())
        task_status.started(len(starts))
        if len(starts) <= len(seconds):
            await trio.sleep(seconds[len(starts) - 1])
            raise KeyError(len(starts))
        await trio.sleep_forever()

    return run, starts


async def test_the_starter_gets_the_first_start_and_its_value(
    autojump_clock: trio.testing.MockClock, crashes: list[str]
) -> None:
    run, starts = failing_after([1, 1])
    async with trio.open_nursery() as nursery:

        async def start(*, task_status: trio.TaskStatus[int]) -> None:
            await supervise("actor", run, policy=POLICY, task_status=task_status)

        assert await nursery.start(start) == 1
        await trio.sleep(30)
        nursery.cancel_scope.cancel(reason="seen")
    assert starts == [0, 2, 4]
    assert crashes == ["actor.crashed"] * 2


async def test_failures_within_the_period_escalate(
    autojump_clock: trio.testing.MockClock, crashes: list[str]
) -> None:
    run, starts = failing_after([1] * 100)
    with pytest.raises(RestartLimitExceeded, match="failed 4 times within 60 s"):
        await supervise("actor", run, policy=POLICY)
    assert len(starts) == 4
    assert len(crashes) == 4


async def test_failures_that_are_spread_out_never_escalate(
    autojump_clock: trio.testing.MockClock, crashes: list[str]
) -> None:
    run, starts = failing_after([25] * 1000)
    with trio.move_on_after(520):
        await supervise("actor", run, policy=POLICY)
    assert len(starts) == 20


async def test_a_first_start_that_fails_is_raised_as_it_is(crashes: list[str]) -> None:
    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        raise KeyError("at once")

    async with trio.open_nursery() as nursery:

        async def start(*, task_status: trio.TaskStatus[None]) -> None:
            await supervise("actor", run, policy=POLICY, task_status=task_status)

        with pytest.raises(KeyError, match="at once"):
            await nursery.start(start)
    assert crashes == []


async def test_a_restart_that_fails_before_it_has_started_counts(
    autojump_clock: trio.testing.MockClock, crashes: list[str]
) -> None:
    starts = 0

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal starts
        starts += 1
        if starts > 1:
            raise KeyError("cannot start again")
        task_status.started()
        raise KeyError("failed")

    with pytest.raises(RestartLimitExceeded):
        await supervise("actor", run, policy=POLICY)
    assert starts == 4


async def test_a_task_that_returns_is_done(crashes: list[str]) -> None:
    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()

    await supervise("actor", run, policy=POLICY)
    assert crashes == []


@pytest.mark.parametrize("seconds", [0.5, 1.5])
async def test_a_cancellation_passes_while_it_runs_and_while_it_waits(
    seconds: float, autojump_clock: trio.testing.MockClock, crashes: list[str]
) -> None:
    run, starts = failing_after([1, 1])
    with trio.move_on_after(seconds) as scope:
        await supervise("actor", run, policy=POLICY)
    assert scope.cancelled_caught
    assert len(starts) == 1


async def test_a_task_that_fails_while_it_is_cancelled_is_logged_and_not_restarted(
    crashes: list[str],
) -> None:
    starts = 0

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal starts
        starts += 1
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("cleaning up")

    async with trio.open_nursery() as nursery:

        async def start(*, task_status: trio.TaskStatus[None]) -> None:
            await supervise("actor", run, policy=POLICY, task_status=task_status)

        await nursery.start(start)
        nursery.cancel_scope.cancel(reason="shutdown")
    assert starts == 1
    assert crashes == ["actor.crashed"]


async def test_a_group_of_failures_is_a_failure(
    autojump_clock: trio.testing.MockClock, crashes: list[str]
) -> None:
    starts = 0

    async def fail() -> None:
        raise KeyError("child")

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal starts
        starts += 1
        task_status.started()
        if starts == 1:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                nursery.start_soon(fail)

    await supervise("actor", run, policy=POLICY)
    assert (starts, crashes) == (2, ["actor.crashed"])
