"""A build's events, each exactly once and in order, across connections that break.

The stream is read until the final status. When the connection breaks, or falls silent for longer
than the daemon's heartbeats allow, it is made again and resumed behind the last event that was
*handed out*; whatever the daemon sends twice is dropped by its id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

import httpx2
import trio

from supervisor.ctl.connection import Body, Connection, open_body, parse_json
from supervisor.ctl.errors import ApiError, DaemonUnreachable, ProtocolError
from supervisor.ctl.model import Event, StatusChange, parse_event
from supervisor.ctl.sse import SseError, SseParser

SILENCE_SECONDS = 45.0
"""Three of the daemon's heartbeats: without any byte for that long, the connection is dead."""
PATIENCE_SECONDS = 60.0
"""How long a broken connection is tried again: long enough for a restart of the daemon."""
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0
_CLOSE_SECONDS = 2.0

_STREAM_TIMEOUT = httpx2.Timeout(10.0, read=None)


class EventStream:
    """An iterator over the events of one build; use `open_events`."""

    def __init__(
        self,
        connection: Connection,
        path: str,
        *,
        follow: bool,
        on_interruption: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._path = path
        self._follow = follow
        self._on_interruption = on_interruption
        self._last_id = ""
        self._ready: deque[Event] = deque()
        self._is_over = False
        self._has_connected = False
        self._pause = _FIRST_PAUSE_SECONDS
        self._give_up_at: float | None = None
        self._open = AsyncExitStack()
        self._body: Body | None = None
        self._parser = SseParser()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Return the next event. Raises DaemonUnreachable when patience has run out.

        After a cancellation the stream can only be closed.
        """
        while not self._ready:
            if self._is_over:
                raise StopAsyncIteration
            cause = None
            try:
                await self._receive()
            except DaemonUnreachable as exc:
                cause = exc
            except ApiError as exc:
                if not self._is_broken or exc.status < 500:
                    raise
                cause = DaemonUnreachable(exc.message)  # it is starting, or about to stop
            if cause is not None:
                await self._wait_before_retry(cause)
        event = self._ready.popleft()
        if event.id:
            self._last_id = event.id
        return event

    async def aclose(self) -> None:
        """Give the connection up; what has been received and not returned is asked for again."""
        self._body = None
        self._parser = SseParser()
        self._ready.clear()
        opened, self._open = self._open, AsyncExitStack()
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            await opened.aclose()

    @property
    def _is_broken(self) -> bool:
        return self._give_up_at is not None

    async def _wait_before_retry(self, cause: DaemonUnreachable) -> None:
        """Give up the connection, and sleep a while. Raises `cause` if there was never a stream."""
        await self.aclose()
        if not self._has_connected:
            raise cause
        if self._give_up_at is None:
            self._give_up_at = trio.current_time() + PATIENCE_SECONDS
            self._on_interruption(cause.message)
        if trio.current_time() >= self._give_up_at:
            raise DaemonUnreachable(
                f"{cause.message}; it did not come back within {PATIENCE_SECONDS:g} s",
                hint="the build goes on without you; once the daemon is back, attach to it again",
            ) from cause
        await trio.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

    async def _connect(self) -> None:
        headers = {"Accept": "text/event-stream"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        response = await self._open.enter_async_context(
            self._connection.open_response(
                "GET",
                self._path,
                params={"follow": "true" if self._follow else "false"},
                headers=headers,
                patience=_STREAM_TIMEOUT,
            )
        )
        content_type = response.headers.get("content-type", "")
        if content_type.partition(";")[0].strip() != "text/event-stream":
            raise ProtocolError(f"the daemon answered {content_type or 'nothing'}, not events")
        self._body = await self._open.enter_async_context(open_body(response))
        self._has_connected = True

    async def _receive(self) -> None:
        """Read once, and put the events that it completes into `_ready`."""
        if self._body is None:
            await self._connect()
        assert self._body is not None
        data: bytes | None = None
        with trio.move_on_after(SILENCE_SECONDS) as scope:
            try:
                data = await self._body.receive()
            except httpx2.TransportError as exc:
                raise DaemonUnreachable(
                    f"the connection to {self._connection.endpoint} broke"
                ) from exc
        if scope.cancelled_caught:
            raise DaemonUnreachable(f"{self._connection.endpoint} fell silent")
        if data:
            self._pause, self._give_up_at = _FIRST_PAUSE_SECONDS, None
            self._take(data)
        elif self._follow:
            raise DaemonUnreachable(f"{self._connection.endpoint} ended the stream early")
        else:
            self._is_over = True

    def _take(self, data: bytes) -> None:
        seen = self._ready[-1].id if self._ready else self._last_id
        try:
            for sent in self._parser.feed(data):
                if _is_repeated(sent.id, seen):
                    continue
                event = parse_event(sent.id, parse_json(sent.data.encode()))
                if event is None:
                    continue
                self._ready.append(event)
                seen = sent.id or seen
                if isinstance(event.data, StatusChange) and event.data.is_final:
                    self._is_over = True
                    break
        except SseError as exc:
            raise ProtocolError(f"the daemon's events cannot be read: {exc}") from exc


def _is_repeated(event_id: str, last_id: str) -> bool:
    """Say whether an event was handed out already: ids are numbers that only increase."""
    return event_id.isdecimal() and last_id.isdecimal() and int(event_id) <= int(last_id)


@asynccontextmanager
async def open_events(
    connection: Connection,
    path: str,
    *,
    follow: bool,
    on_interruption: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[EventStream]:
    """Yield the events below `path`; the connection is closed with the block."""
    stream = EventStream(connection, path, follow=follow, on_interruption=on_interruption)
    try:
        yield stream
    finally:
        await stream.aclose()
