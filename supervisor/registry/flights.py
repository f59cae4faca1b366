"""Work that many wait for and that is done once.

The work runs in a task of its own below `Flights.run`, so whoever asked first may leave without
ending it for the others. When the last one leaves, nobody needs it: it is cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

import trio

from supervisor.runtime.mailbox import ActorGone

T = TypeVar("T")


class _Flight:
    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.landed = trio.Event()
        self.value: Any = None
        self.error: Exception | None = ActorGone("the fetch was stopped")
        self.waiters = 0


class Flights:
    """The work under way, by key."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the work until cancelled; what is under way then fails its waiters (ActorGone)."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def join(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Return what `work` returns, or raise what it raises; `key` says what is the same work.

        Raises ActorGone if `run` is not running.
        """
        flight = self._flights.get(key)
        if flight is None:
            if self._nursery is None:
                raise ActorGone("the mirror is not running")
            flight = self._flights[key] = _Flight()
            self._nursery.start_soon(self._fly, key, flight, work)
        flight.waiters += 1
        try:
            await flight.landed.wait()
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.landed.is_set():
                flight.scope.cancel(reason="nobody waits for it any more")
                self._forget(key, flight)  # who comes now begins anew
        if flight.error is not None:
            raise flight.error
        value: T = flight.value
        return value

    async def _fly(
        self, key: Hashable, flight: _Flight, work: Callable[[], Awaitable[object]]
    ) -> None:
        try:
            with flight.scope:
                try:
                    flight.value, flight.error = await work(), None
                except Exception as exc:
                    # The waiters are at the edge of HTTP, which logs what nobody expected.
                    flight.error = exc
        finally:
            self._forget(key, flight)
            flight.landed.set()

    def _forget(self, key: Hashable, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
