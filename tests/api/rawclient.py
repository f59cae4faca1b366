"""A client that does exactly what a test says: half a request, a stream left in the middle."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import h11
import trio


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    id: str | None
    data: dict[str, Any]

    @property
    def line(self) -> str:
        """What a person would see of it."""
        return str(self.data.get("content") or self.data.get("status") or self.data["type"])


def parse_events(text: str) -> Iterator[Event]:
    """Split whole server-sent events."""
    for block in text.split("\n\n"):
        if block:
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            yield Event(fields.get("id"), json.loads(fields["data"]))


class RawClient:
    """One HTTP/1.1 connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self._text = ""
        self._events: list[Event] = []

    async def send_head(
        self, method: str, target: str, headers: dict[str, str] | None = None
    ) -> None:
        """Send a request without its body."""
        pairs = [("Host", "x"), *(headers or {}).items()]
        await self._send(h11.Request(method=method, target=target, headers=pairs))

    def pretend(self, method: str) -> None:
        """Take what was sent by other means for a request, so that the answer can be read."""
        self._http.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        self._http.send(h11.EndOfMessage())

    async def send_data(self, data: bytes) -> None:
        """Send a piece of the body."""
        await self._send(h11.Data(data=data))

    async def send_end(self) -> None:
        """End the body."""
        await self._send(h11.EndOfMessage())

    async def receive_head(self) -> h11.Response:
        """Return the head of the answer."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return event

    async def receive_status(self) -> int:
        """Return the status of the answer, which may be an upgrade."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return event.status_code
            if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                return 101

    async def receive_body(self) -> bytes:
        """Return the rest of the answer's body."""
        body = bytearray()
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            assert isinstance(event, h11.Data), event
            body += event.data
        return bytes(body)

    async def next_event(self) -> Event | None:
        """Return the next server-sent event, or None at the end of the stream."""
        while not self._events:
            event = await self._next()
            if isinstance(event, h11.EndOfMessage):
                assert not self._text, "the stream ended inside an event"
                return None
            assert isinstance(event, h11.Data), event
            blocks, end, self._text = (self._text + bytes(event.data).decode()).rpartition("\n\n")
            self._events = list(parse_events(blocks + end))
        return self._events.pop(0)

    async def _send(self, event: Any) -> None:
        data = self._http.send(event)
        assert data is not None
        if data:
            await self.stream.send_all(data)

    async def _next(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(bytes(await self.stream.receive_some()))
        return event


@asynccontextmanager
async def following(
    stream: trio.abc.Stream, path: str, headers: dict[str, str]
) -> AsyncIterator[RawClient]:
    """Follow an event stream while the block lasts."""
    async with stream:
        client = RawClient(stream)
        await client.send_head("GET", path, headers)
        await client.send_end()
        assert (await client.receive_head()).status_code == 200
        yield client
