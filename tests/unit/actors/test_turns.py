"""Turns at coming up: so many at once, in order, and nobody waits for one that is overdue."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from supervisor.actors.turns import TURN_SECONDS, Turn, Turns
from tests.kit import cancel_at_every_checkpoint


class Takers:
    """Tasks that take a turn each and keep it; `had` has their names in the order of having it."""

    def __init__(self, turns: Turns) -> None:
        self.had: dict[str, Turn] = {}
        self._turns = turns

    async def take(self, name: str) -> None:
        self.had[name] = await self._turns.take()


async def test_as_many_as_there_are_turns_have_one_at_once_and_the_others_follow_in_order(
    autojump_clock: MockClock,
) -> None:
    takers = Takers(Turns(2))
    async with trio.open_nursery() as nursery:
        for name in "abcde":
            nursery.start_soon(takers.take, name)
            await wait_all_tasks_blocked()
        assert list(takers.had) == ["a", "b"]
        takers.had["b"].end()
        await wait_all_tasks_blocked()
        assert list(takers.had) == ["a", "b", "c"]
        takers.had["a"].end()
        takers.had["c"].end()
        await wait_all_tasks_blocked()
        assert list(takers.had) == ["a", "b", "c", "d", "e"]
    assert trio.current_time() == 0


async def test_a_turn_that_nobody_gives_back_is_over_in_time(autojump_clock: MockClock) -> None:
    turns = Turns(1)
    for number in range(3):
        turn = await turns.take()
        assert trio.current_time() == number * TURN_SECONDS
        assert turn.ends_at == trio.current_time() + TURN_SECONDS


async def test_ending_a_turn_twice_or_late_takes_nothing_from_others(
    autojump_clock: MockClock,
) -> None:
    turns = Turns(1)
    overdue = await turns.take()
    second = await turns.take()
    overdue.end()
    assert trio.current_time() == TURN_SECONDS
    with trio.move_on_after(TURN_SECONDS / 2) as third:
        await turns.take()
    assert third.cancelled_caught, "the second's turn was not over"
    second.end()
    second.end()
    await turns.take()
    assert trio.current_time() == 1.5 * TURN_SECONDS


async def test_whoever_is_cancelled_has_taken_none(autojump_clock: MockClock) -> None:
    turns = Turns(1)

    async def take() -> None:
        (await turns.take()).end()

    async def check(_: int) -> None:
        (await turns.take()).end()
        assert trio.current_time() == 0

    assert await cancel_at_every_checkpoint(take, check) >= 1


async def test_a_wait_that_is_cancelled_leaves_the_door_open(autojump_clock: MockClock) -> None:
    turns = Turns(1)
    first = await turns.take()
    takers = Takers(turns)
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1) as scope:
            await turns.take()  # waits inside, with all others behind it
        assert scope.cancelled_caught
        nursery.start_soon(takers.take, "next")
        await wait_all_tasks_blocked()
        assert not takers.had
        first.end()
    assert list(takers.had) == ["next"]
    assert trio.current_time() == 1
