"""Turns at bringing up machines: what comes up at once wants no more processors than there are.

A machine that comes up wants all the processors that it has, and nothing of it is of use before it
is up. Eight that share two processors are up late, all of them, and the emulator or the processor's
caches have worked for eight at a time; one after the other the first builds while the next comes
up. So a machine waits for its turn, in the order of asking.

A turn is a courtesy and no lock: who does not give it back in time has had it all the same. So a
guest that hangs, or one whose source takes long to fetch, keeps nobody waiting for longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

TURN_SECONDS = 15.0
"""An emulated machine on a host with nothing else to do has BuildKit up after five."""


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """Somebody's turn, until `end` or until its time is up. Made by `Turns.take`."""

    cpus: int
    """How many processors the machine has."""
    ends_at: float
    """When it ends at the latest, on trio's clock."""
    give_back: Callable[[Turn], None]
    """What `end` does: only who gave it knows whether it lasts still."""

    def end(self) -> None:
        """Give it back: the machine is up, or will never be. Again, it changes nothing."""
        self.give_back(self)


class Turns:
    """As many at once as the processors are enough for, in the order of asking."""

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._taken: list[Turn] = []
        self._door = trio.Lock()
        self._changed = trio.Event()

    def __repr__(self) -> str:
        return f"<Turns: {len(self._taken)} taken, of {self._cpus} processors>"

    async def take(self, cpus: int) -> Turn:
        """Wait for a turn, for a machine with so many processors. Cancelled, none is taken.

        One that has more than the host comes up when no other does.
        """
        async with self._door:  # who comes next waits in here, all others at the door, in order
            while self._taken and self._wanted + cpus > self._cpus:
                with trio.move_on_at(self._taken[0].ends_at):
                    await self._changed.wait()
                self._drop_overdue()
            turn = Turn(cpus, trio.current_time() + TURN_SECONDS, self._give_back)
            self._taken.append(turn)  # all last as long, so the first ends first
        return turn

    def _give_back(self, turn: Turn) -> None:
        if turn in self._taken:
            self._taken.remove(turn)
            self._changed.set()
            self._changed = trio.Event()

    @property
    def _wanted(self) -> int:
        return sum(turn.cpus for turn in self._taken)

    def _drop_overdue(self) -> None:
        now = trio.current_time()
        self._taken = [turn for turn in self._taken if turn.ends_at > now]
