"""Events to followers as server-sent events.

Nothing is buffered for a follower: it takes the next batch when the last one is written, so a slow
one costs nobody anything. Many events go out in one write; that is what makes it fast.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from enum import Enum, auto
from types import TracebackType

import trio
from quart.wrappers.response import ResponseBody

from supervisor.api.ports import ApiDeps, EventReader
from supervisor.model.events import EventBatch, EventId
from supervisor.model.ids import BuildId
from supervisor.model.times import rfc3339

HEARTBEAT_SECONDS = 15.0
LEAVE_SECONDS = 5.0
"""For giving up a place in the log; it takes no time unless something is broken."""


class Pause(Enum):
    """Why there is no batch."""

    SILENCE = auto()
    """Nothing happened for a while: time for a heartbeat."""
    END = auto()
    """The final status was delivered, or there is nothing more now, or the daemon stops."""


async def next_batch(deps: ApiDeps, reader: EventReader) -> EventBatch | Pause:
    """Return the next events of a follower."""
    found: EventBatch | None = None
    with deps.stopping.interrupting(HEARTBEAT_SECONDS) as scope:
        found = await reader.next_batch()
    if scope.cancelled_caught and not deps.stopping.is_set:
        return Pause.SILENCE
    return Pause.END if found is None else found


def heartbeat(deps: ApiDeps) -> bytes:
    """Return the event that tells that the connection lives. It has no id: nothing happened."""
    return json.dumps({"type": "heartbeat", "timestamp": rfc3339(deps.clock())}).encode()


class EventStreamBody(ResponseBody):
    """The body of an event stream. The subscription lasts as long as the answer is being sent."""

    def __init__(self, deps: ApiDeps, build_id: BuildId, after: EventId, *, follow: bool) -> None:
        self._deps = deps
        self._open = deps.builds.open_events(build_id, after=after, follow=follow)
        self._reader: EventReader
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> EventStreamBody:
        self._reader = await self._stack.enter_async_context(self._open)
        self._stack.enter_context(self._deps.log_readers.reading())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        with trio.move_on_after(LEAVE_SECONDS, shield=True):
            await self._stack.__aexit__(exc_type, exc_value, tb)

    def __aiter__(self) -> EventStreamBody:
        return self

    async def __anext__(self) -> bytes:
        match await next_batch(self._deps, self._reader):
            case EventBatch() as batch:
                return batch.as_sse
            case Pause.SILENCE:
                return b"data: %s\n\n" % heartbeat(self._deps)
            case Pause.END:
                raise StopAsyncIteration
