"""Turns at coming up: as the processors allow, in order, and nobody waits for one overdue."""

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

    async def take(self, name: str, cpus: int = 2) -> None:
        self.had[name] = await self._turns.take(cpus)


async def test_as_many_as_there_are_turns_have_one_at_once_and_the_others_follow_in_order(
    autojump_clock: MockClock,
) -> None:
    takers = Takers(Turns(cpus=5))
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


async def test_each_wants_as_many_processors_as_its_machine_has(autojump_clock: MockClock) -> None:
    takers = Takers(Turns(cpus=4))
    async with trio.open_nursery() as nursery:
        for name, cpus in {"one": 1, "two": 2, "all": 4, "last": 1}.items():
            nursery.start_soon(takers.take, name, cpus)
            await wait_all_tasks_blocked()
        assert list(takers.had) == ["one", "two"], "the last would fit, but is not next"
        takers.had["one"].end()
        await wait_all_tasks_blocked()
        assert list(takers.had) == ["one", "two"]
        takers.had["two"].end()
        await wait_all_tasks_blocked()
        assert list(takers.had) == ["one", "two", "all"]
        takers.had["all"].end()
    assert trio.current_time() == 0


async def test_one_that_wants_more_than_there_are_comes_up_alone(
    autojump_clock: MockClock,
) -> None:
    turns = Turns(cpus=2)
    first = await turns.take(1)
    takers = Takers(turns)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(takers.take, "big", 16)
        await wait_all_tasks_blocked()
        assert not takers.had
        first.end()
    assert list(takers.had) == ["big"]


async def test_a_turn_that_nobody_gives_back_is_over_in_time(autojump_clock: MockClock) -> None:
    turns = Turns(cpus=2)
    for number in range(3):
        turn = await turns.take(2)
        assert trio.current_time() == number * TURN_SECONDS
        assert turn.ends_at == trio.current_time() + TURN_SECONDS


async def test_ending_a_turn_twice_or_late_takes_nothing_from_others(
    autojump_clock: MockClock,
) -> None:
    turns = Turns(cpus=2)
    overdue = await turns.take(2)
    second = await turns.take(2)
    overdue.end()
    assert trio.current_time() == TURN_SECONDS
    with trio.move_on_after(TURN_SECONDS / 2) as third:
        await turns.take(2)
    assert third.cancelled_caught, "the second's turn was not over"
    second.end()
    second.end()
    await turns.take(2)
    assert trio.current_time() == 1.5 * TURN_SECONDS


async def test_whoever_is_cancelled_has_taken_none(autojump_clock: MockClock) -> None:
    turns = Turns(cpus=2)

    async def take() -> None:
        (await turns.take(2)).end()

    async def check(_: int) -> None:
        (await turns.take(2)).end()
        assert trio.current_time() == 0

    assert await cancel_at_every_checkpoint(take, check) >= 1


async def test_a_wait_that_is_cancelled_leaves_the_door_open(autojump_clock: MockClock) -> None:
    turns = Turns(cpus=2)
    first = await turns.take(2)
    takers = Takers(turns)
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1) as scope:
            await turns.take(2)  # waits inside, with all others behind it
        assert scope.cancelled_caught
        nursery.start_soon(takers.take, "next")
        await wait_all_tasks_blocked()
        assert not takers.had
        first.end()
    assert list(takers.had) == ["next"]
    assert trio.current_time() == 1
