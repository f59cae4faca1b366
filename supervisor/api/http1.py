"""HTTP/1.1 and websockets on one connection: Hypercorn's machinery, made to cost less.

Hypercorn 0.18 and h11 0.16 decide what the bytes mean; what is changed here is how often they are
asked, and that no large piece is copied on its way:

* The body of a request with a Content-Length goes past h11 as it is received, once its head and
  what came with it are parsed. h11 is told how much that was, so it ends the body as it always did.
* The chunks of a body without one, as h11 finds them in what was received, are handed on together.
* The head of an answer with a Content-Length waits for the first piece of its body: one write.
* An application may have a part of a file sent by the kernel (`SEND_FILE`), and many messages of a
  websocket sent in one write (`JOIN_WRITES`).
* A client that waits for leave to send its body gets it when the application wants the body.

Both versions are pinned exactly in pyproject.toml; tests/api/test_connections.py and
tests/api/test_bodies.py hold all of this.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from wsgiref.handlers import format_date_time

import h11
import trio
from h11._readers import ChunkedReader, ContentLengthReader
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.protocol.events import Body, EndBody
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.typing import ConnectionState

from supervisor.api.front import JOIN_WRITES, ClientGone
from supervisor.api.problems import Problem
from supervisor.registry.http import SEND_FILE

RECEIVE_BYTES = 64 << 10
BODY_RECEIVE_BYTES = 256 << 10
"""Of a body at a time: large enough that what each piece costs hardly counts."""
_JOINED_CHUNKS = 64
"""Of a body, handed on together: between any two such pieces others get their turn."""
_JOINED_BYTES = 64 << 10
"""Pieces that are together no longer than this go out in one write."""

SendFile = Callable[[int, int, int, trio.CapacityLimiter], Awaitable[None]]


class ServerConfig(Config):
    """Hypercorn's settings; the date is formatted once a second, not for each answer."""

    _date = (0, b"")

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """Return the headers that every answer gets."""
        now = int(time.time())
        if ServerConfig._date[0] != now:
            ServerConfig._date = (now, format_date_time(now).encode("ascii"))
        return [(b"date", ServerConfig._date[1])]


class Http1(H11Protocol):
    """The protocol of one connection; its own errors are JSON too."""

    def __init__(
        self,
        app: Any,
        config: Config,
        context: Any,
        tasks: Any,
        send: Callable[[Any], Awaitable[None]],
        send_file: SendFile | None,
        join_writes: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        super().__init__(app, config, context, tasks, ConnectionState({}), False, None, None, send)
        self._send_file = send_file
        self._join_writes = join_writes
        # What h11 has let go and nobody has written yet.
        self._held: list[bytes] = []
        self._is_continue_due = False

    # Receiving

    @property
    def is_mid_request(self) -> bool:
        """Say whether the client may still be sending what nobody will read."""
        return self.connection.their_state in (h11.SEND_BODY, h11.ERROR)

    @property
    def receive_bytes(self) -> int:
        """How much to receive at a time now; what `receive` is given must not be more."""
        reader = self._body_reader()
        if reader is None:
            return BODY_RECEIVE_BYTES if self._is_in_chunks else RECEIVE_BYTES
        return min(reader._remaining, BODY_RECEIVE_BYTES)

    async def receive(self, data: bytes) -> None:
        """Take what has come; nothing is the end of the client's stream."""
        if data and self._is_in_chunks:
            await self._receive_chunks(data)
            return
        reader = self._body_reader()
        if reader is None or not data:
            await self.handle(RawData(data))
            return
        assert len(data) <= reader._remaining
        reader._remaining -= len(data)
        assert self.stream is not None
        await self.stream.handle(Body(stream_id=STREAM_ID, data=data))
        if not reader._remaining:
            await self._handle_events()

    async def _receive_chunks(self, data: bytes) -> None:
        self.connection.receive_data(data)
        is_body = True
        while is_body and self.stream is not None:
            event: Any = None
            pieces: list[bytes] = []
            while len(pieces) < _JOINED_CHUNKS:
                try:
                    event = self.connection.next_event()
                except h11.RemoteProtocolError:
                    event = None  # it is raised again, to where it is answered
                if not isinstance(event, h11.Data):
                    is_body = False
                    break
                pieces.append(event.data)
            if pieces:
                joined = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                await self.stream.handle(Body(stream_id=STREAM_ID, data=joined))
        if isinstance(event, h11.EndOfMessage) and self.stream is not None:
            await self.stream.handle(EndBody(stream_id=STREAM_ID))
        await self._handle_events()

    @property
    def _is_in_chunks(self) -> bool:
        """Say whether what comes next is of a body in chunks."""
        connection = self.connection
        return (
            self.stream is not None
            and isinstance(connection, h11.Connection)
            and connection.their_state is h11.SEND_BODY
            and isinstance(connection._reader, ChunkedReader)
        )

    def _body_reader(self) -> ContentLengthReader | None:
        """Return what counts the body's bytes, if all that comes next are such bytes."""
        connection = self.connection
        if (
            self.stream is None
            or not isinstance(connection, h11.Connection)
            or connection.their_state is not h11.SEND_BODY
            or connection._receive_buffer
        ):
            return None
        reader = connection._reader
        if isinstance(reader, ContentLengthReader) and reader._remaining:
            return reader
        return None

    async def _check_protocol(self, event: h11.Request) -> None:
        """Upgrade to no HTTP/2."""

    async def _create_stream(self, request: h11.Request) -> None:
        names = {name for name, _ in request.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            # Whoever stands in front of us may believe the other one (RFC 9112, 6.1).
            await self._send_error_response(400)
            await self.send(Closed())
            return
        if b"sec-websocket-extensions" in names:
            # Without its offer, no compression of websocket messages is agreed on.
            request = h11.Request(
                method=request.method,
                target=request.target,
                headers=[
                    pair for pair in request.headers if pair[0] != b"sec-websocket-extensions"
                ],
                http_version=request.http_version,
            )
        await super()._create_stream(request)

    # Sending

    def extend(self, scope: Any) -> None:
        """Offer an application what this connection can do beyond ASGI."""
        if scope["type"] == "websocket":
            scope["extensions"][JOIN_WRITES] = self._join_writes
        if scope["type"] == "http" and self._send_file is not None:
            scope["extensions"][SEND_FILE] = self._send_part

    async def _send_part(
        self, fd: int, offset: int, count: int, limiter: trio.CapacityLimiter
    ) -> None:
        """Send a part of a file as a piece of the body that a Content-Length has announced.

        Raises ClientGone if there is nobody to send to.
        """
        assert self._send_file is not None
        placeholder: Any = _Elsewhere(count)
        pieces = self._encode(h11.Data(data=placeholder))
        if pieces is None:
            raise ClientGone("the client has gone")
        assert pieces == [placeholder], "the length of the body was not announced"
        await self._flush()
        await self._send_file(fd, offset, count, limiter)

    async def ask_for_body(self) -> None:
        """Tell a client that waits for it (`Expect: 100-continue`) that its body is wanted.

        Not before the application takes from it: who may not send one is told so first.
        """
        if self._is_continue_due:
            self._is_continue_due = False
            if self.connection.they_are_waiting_for_100_continue:
                pieces = self._encode(h11.InformationalResponse(status_code=100, headers=[]))
                self._held += pieces or []
                await self._flush()

    async def _send_h11_event(self, event: Any) -> None:
        if isinstance(event, h11.InformationalResponse) and event.status_code == 100:
            self._is_continue_due = True
            return
        self._is_continue_due = False
        pieces = self._encode(event)
        if pieces is not None:
            self._held += pieces
            if not (isinstance(event, h11.Response) and _has_length(event)):
                await self._flush()

    def _encode(self, event: Any) -> list[bytes] | None:
        """Return what to write; None if the client has made that pointless."""
        connection: Any = getattr(self.connection, "h11_connection", self.connection)
        try:
            pieces: list[bytes] = connection.send_with_data_passthrough(event)
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return None
        return pieces

    async def _flush(self) -> None:
        pieces, self._held = self._held, []
        if sum(map(len, pieces)) <= _JOINED_BYTES:
            pieces = [b"".join(pieces)]
        for piece in pieces:
            if piece:
                await self.send(RawData(piece))

    async def _send_error_response(self, status_code: int) -> None:
        problem = Problem(400, "invalid_request", f"this is no valid HTTP request ({status_code})")
        headers = [*problem.raw_headers(), (b"connection", b"close")]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=headers))
        await self._send_h11_event(h11.Data(data=problem.body()))
        await self._send_h11_event(h11.EndOfMessage())


class _Elsewhere:
    """Stands for bytes that this process does not hold: all that h11 asks for is how many."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


def _has_length(event: h11.Response) -> bool:
    return any(name == b"content-length" for name, _ in event.headers)
