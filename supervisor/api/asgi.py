"""Quart's connections, with a bound on what they hold.

Quart takes a request's body as fast as the server hands it over, whether the handler reads it or
not, so a large upload would lie in memory. Here taking waits for the handler. And a websocket hands
its messages over one by one, or drops them when its handler only ever sends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import suppress
from typing import Any, cast

import trio
from quart import Response
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection
from quart_trio.wrappers import TrioRequest
from quart_trio.wrappers.request import TrioBody

from supervisor.api.front import ClientGone, Message, Send

MAX_BUFFERED_BYTES = 256 << 10
"""Of one request's body, beside the piece that goes over it."""
IGNORE_KEY = "hypeman.ignore_messages"
"""In a websocket's scope: call it to drop what the client sends from now on."""


class BoundedBody(TrioBody):
    """A request's body that is read in pieces, and waits for its reader."""

    def __init__(self, expected: int | None, most: int | None) -> None:
        super().__init__(expected, most)
        self._pieces: deque[bytes] = deque()
        self._is_complete = False
        self._is_wanted = False
        self._is_unwanted = False
        self._changed = trio.Event()
        self.held_bytes = 0

    async def __anext__(self) -> bytes:
        if not self._is_wanted:
            self._is_wanted = True
            self._wake()
        while not self._pieces:
            if self._is_complete or self._is_unwanted:
                raise StopAsyncIteration
            await self._changed.wait()
        piece = self._pieces.popleft()
        self.held_bytes -= len(piece)
        self._wake()
        return piece

    def __await__(self) -> Generator[Any, None, Any]:
        raise AssertionError("bodies are read in pieces, with a limit")

    def append(self, data: bytes) -> None:
        if data and not self._is_unwanted:
            self._pieces.append(data)
            self.held_bytes += len(data)
            self._wake()

    def set_complete(self) -> None:
        self._is_complete = True
        self._wake()

    def drop(self) -> None:
        """Drop what is held and what comes: the answer is known, nobody reads on."""
        self._is_unwanted = True
        self._pieces.clear()
        self.held_bytes = 0
        self._wake()

    async def wait_wanted(self) -> None:
        """Wait until somebody reads, or the answer is known: to receive is to ask for the body."""
        while not (self._is_wanted or self._is_unwanted):
            await self._changed.wait()

    async def wait_for_room(self) -> None:
        """Wait until another piece may be taken."""
        while self.held_bytes >= MAX_BUFFERED_BYTES:
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class BoundedRequest(TrioRequest):
    """A request with such a body."""

    body_class: type[BoundedBody] = BoundedBody
    body: BoundedBody


class HTTPConnection(TrioASGIHTTPConnection):
    """One request. A client that goes away cancels its handler."""

    async def __call__(self, receive: Any, send: Any) -> None:
        request = self._create_request_from_scope(send)
        async with trio.open_nursery() as nursery:
            quiet = _cancelling(nursery, send)
            wanted: Any = request
            nursery.start_soon(self.handle_messages, nursery, wanted, receive)
            nursery.start_soon(self.handle_request, nursery, wanted, quiet)

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, request: BoundedRequest, receive: Any
    ) -> None:
        if "100-continue" in request.headers.get("Expect", "").lower():
            await request.body.wait_wanted()
        while True:
            await request.body.wait_for_room()
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            request.body.append(message.get("body", b""))
            if not message.get("more_body", False):
                request.body.set_complete()
        nursery.cancel_scope.cancel(reason="the client has gone")

    async def handle_request(  # type: ignore[override]
        self, nursery: trio.Nursery, request: BoundedRequest, send: Any
    ) -> None:
        response = await self.app.handle_request(request)
        request.body.drop()
        timeout = self.app.config["RESPONSE_TIMEOUT"]
        if isinstance(response, Response) and response.timeout is not Ellipsis:
            timeout = cast("float | None", response.timeout)
        with trio.CancelScope() as scope:
            if timeout is not None:
                scope.deadline = trio.current_time() + timeout
            await self._send_response(send, response)
        nursery.cancel_scope.cancel(reason="the answer is sent")


class WebsocketConnection(TrioASGIWebsocketConnection):
    """One websocket."""

    def __init__(self, app: Any, scope: Any) -> None:
        super().__init__(app, scope)
        self.send_channel, self.receive_channel = trio.open_memory_channel(0)
        scope[IGNORE_KEY] = self.receive_channel.close

    async def __call__(self, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:
            quiet = _cancelling(nursery, send)
            websocket = self._create_websocket_from_scope(quiet)
            nursery.start_soon(self.handle_messages, nursery, receive)
            nursery.start_soon(self.handle_websocket, nursery, websocket, quiet)

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, receive: Any
    ) -> None:
        while True:
            event = await receive()
            if event["type"] == "websocket.disconnect":
                break
            if event["type"] == "websocket.receive":
                # Not `or`: an empty binary message has a meaning.
                data = event.get("bytes")
                with suppress(trio.BrokenResourceError):  # the handler ignores messages
                    await self.send_channel.send(event["text"] if data is None else data)
        nursery.cancel_scope.cancel(reason="the client has gone")


def _cancelling(nursery: trio.Nursery, send: Send) -> Any:
    """Return `send`, made to cancel the request when there is nobody to send to any more."""

    async def cancelling_send(message: Message) -> None:
        try:
            await send(message)
        except ClientGone:
            nursery.cancel_scope.cancel(reason="the client has gone")
            await trio.lowlevel.checkpoint()

    return cancelling_send
