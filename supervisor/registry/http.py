"""The little of HTTP that the registry needs, straight on ASGI.

No framework stands between the server and a handler: blobs are large, manifests are asked for
often, and both must cost as little as they can. The server gives back-pressure on receiving (its
queue of body chunks is bounded) and on sending (a send returns when the socket took the bytes).

A client that goes away is noticed at the next receive (`ClientGone`); nothing is cancelled for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import outcome
import trio

from supervisor.registry.errors import Code, Header, RegistryError, bad_parameter

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
CountBytes = Callable[[str, int], None]
"""(`in` or `out`, number): bytes of bodies that have gone through."""
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

SEND_FILE = "hypeman.send_file"
"""Among a scope's extensions: an async function of (descriptor, offset, count, limiter) that sends
a part of a file, in threads of that limiter, as a piece of a body of announced length."""

T = TypeVar("T")

_MAX_PARAMETERS = 64
_MAX_CHUNKS = 256
"""In one batch: a client that sends a body byte by byte must not cost an object for each."""
_DRAIN_BYTES = 8 << 20
_DRAIN_SECONDS = 5.0
"""How much, and how long, of an unwanted body is read after the answer, so that a client that still
sends gets to read the answer instead of a reset connection."""

JSON: Header = (b"content-type", b"application/json")
_API_VERSION: Header = (b"docker-distribution-api-version", b"registry/2.0")


class ClientGone(Exception):
    """The client closed the connection before the request was over."""


class Request:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.answered = False
        self.count_bytes: CountBytes = count_nothing
        """Told of the body that comes, and of that of an answer which is no error."""
        self._is_error = False
        self._receive = receive
        self._send = send
        self._is_gone = False
        self._query: dict[str, list[str]] | None = None
        # Without either header there is no body (RFC 9112, 6.3).
        self._body_ended = (
            self.header(b"content-length") or self.header(b"transfer-encoding") or "0"
        ) == "0"

    # What was asked

    def header(self, name: bytes) -> str | None:
        """Return the first header with a lower-case name."""
        for key, value in self.scope["headers"]:
            if key == name:
                text: str = value.decode("latin-1")
                return text
        return None

    @property
    def query(self) -> Mapping[str, list[str]]:
        """The query parameters. Raises RegistryError if there are absurdly many."""
        if self._query is None:
            self._query = {}
            raw = self.scope["query_string"].decode("latin-1")
            try:
                pairs = parse_qsl(raw, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
            except ValueError as exc:
                raise bad_parameter("query", f"more than {_MAX_PARAMETERS} parameters") from exc
            for key, value in pairs:
                self._query.setdefault(key, []).append(value)
        return self._query

    def parameter(self, name: str) -> str | None:
        """Return the first query parameter with a name."""
        values = self.query.get(name)
        return values[0] if values else None

    def content_length(self) -> int | None:
        """Return the length that the client announced; None for a chunked body."""
        text = self.header(b"content-length")
        return int(text) if text is not None and text.isdecimal() else None

    # The body

    async def read_batch(self, at_least: int) -> list[bytes]:
        """Return the next chunks of the body, together about that long unless the body ends.

        An empty list is the end. Raises ClientGone, after all that did arrive was returned.
        """
        chunks: list[bytes] = []
        total = 0
        while total < at_least and len(chunks) < _MAX_CHUNKS and not self._body_ended:
            message = None if self._is_gone else await self._receive()
            if message is None or message["type"] == "http.disconnect":
                self._is_gone = True
                if chunks:
                    return chunks
                raise ClientGone
            if chunk := message.get("body", b""):
                chunks.append(chunk)
                self.count_bytes("in", len(chunk))
                total += len(chunk)
            self._body_ended = not message.get("more_body", False)
        return chunks

    @property
    def has_ended(self) -> bool:
        """Say whether no more of the body comes, so that `unless_gone` takes nothing of it."""
        return self._body_ended

    async def read_all(self, limit_bytes: int) -> bytes:
        """Return the whole body. Raises RegistryError (413) when it is over the limit."""
        too_large = RegistryError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            Code.SIZE_INVALID,
            f"the body is larger than {limit_bytes} bytes",
        )
        if (self.content_length() or 0) > limit_bytes:
            raise too_large
        body = bytearray()
        while chunks := await self.read_batch(1):
            for chunk in chunks:
                body += chunk
            if len(body) > limit_bytes:
                raise too_large
        return bytes(body)

    async def unless_gone(self, look: Callable[[], Awaitable[T]]) -> T:
        """Return what `look` returns, or raise what it raises; for what may take long.

        Raises ClientGone, and cancels it, if the client leaves first. For requests without a body.
        """
        found: outcome.Outcome[T] | None = None
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                await self.wait_closed()
                nursery.cancel_scope.cancel(reason="the client is gone")

            nursery.start_soon(leave)
            try:
                found = outcome.Value(await look())
            except Exception as exc:  # handed on below, without an exception group around it
                found = outcome.Error(exc)
            nursery.cancel_scope.cancel(reason="found out")
        if found is None:
            raise ClientGone
        return found.unwrap()

    async def wait_closed(self) -> None:
        """Wait until the client goes away. Only after the whole body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # The answer

    async def start(self, status: int, headers: Sequence[Header]) -> None:
        """Send the status and the headers; the body follows in pieces."""
        self.answered = True
        self._is_error = status >= HTTPStatus.BAD_REQUEST
        await self._pass_on(
            {
                "type": "http.response.start",
                "status": int(status),
                "headers": [*headers, _API_VERSION],
            }
        )

    async def send_piece(self, piece: bytes, *, more: bool) -> None:
        """Send a part of the body; returns when the connection has room again."""
        await self._pass_on({"type": "http.response.body", "body": piece, "more_body": more})
        if piece and not self._is_error:
            self.count_bytes("out", len(piece))

    @property
    def can_send_files(self) -> bool:
        """Say whether the server sends files by itself."""
        return SEND_FILE in self.scope.get("extensions", {})

    async def send_file(
        self, fd: int, offset: int, count: int, limiter: trio.CapacityLimiter
    ) -> None:
        """Send a part of a file as a part of the body, which another piece ends."""
        try:
            await self.scope["extensions"][SEND_FILE](fd, offset, count, limiter)
        except OSError as exc:
            raise ClientGone from exc
        self.count_bytes("out", count)

    async def answer(self, status: int, body: bytes = b"", headers: Sequence[Header] = ()) -> None:
        """Send a whole answer. The rest of the request's body is read and dropped, in bounds."""
        if status != HTTPStatus.NO_CONTENT:
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        await self.start(status, headers)
        if self._body_ended:
            await self.send_piece(body, more=False)
            return
        await self.send_piece(body, more=True)
        await self._drain()
        await self.send_piece(b"", more=False)

    async def _pass_on(self, message: dict[str, Any]) -> None:
        try:
            await self._send(message)
        except OSError as exc:  # ASGI's word for a client that has gone
            raise ClientGone from exc

    async def _drain(self) -> None:
        left = _DRAIN_BYTES
        with trio.move_on_after(_DRAIN_SECONDS):
            try:
                while left > 0 and (chunks := await self.read_batch(1)):
                    left -= sum(map(len, chunks))
            except ClientGone:
                return


def count_nothing(direction: str, count: int) -> None:
    """Take no count."""


def header(name: str, value: str) -> Header:
    """Return a header as ASGI takes it."""
    return name.encode("ascii"), value.encode("ascii")
