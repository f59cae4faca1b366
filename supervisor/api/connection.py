"""One HTTP connection: Hypercorn's protocol machinery, with every wait bounded.

Hypercorn 0.18's own connection has properties that a daemon cannot have, so these are replaced:

* It sends under a shield without a deadline, so one client that does not read holds up a stop for
  ever. Here nothing is shielded: cancelling a connection ends it.
* When the client is gone it lets an application send on into the void. Here `send` raises
  ClientGone.
* An application that ends before it has read its request's body leaves the connection waiting for
  it to do so. Here its inbox is closed when it ends.
* It closes at once behind an early answer, while the client still sends: the client then gets a
  reset instead of the answer. Here what still comes is read and dropped for a moment.
* It speaks HTTP/2 with prior knowledge, and compresses websockets. Nobody here needs them, and both
  let a few bytes cost a lot, so they are off.

The version is pinned in pyproject.toml; tests/api/test_connections.py holds all of this.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import Any

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState

from supervisor.api.front import ClientGone, Front
from supervisor.api.problems import Problem

KEEP_ALIVE_SECONDS = 15.0
"""For the next request on a connection; also for the whole head of the first one."""
LINGER_SECONDS = 2.0
"""For the client to notice an early answer and stop sending."""
MAX_HEAD_BYTES = 32 << 10
MAX_WEBSOCKET_MESSAGE_BYTES = 4 << 20
BODY_QUEUE = 2
"""Pieces of a body (64 KiB) or messages of a websocket between a connection and its application."""


def make_config() -> Config:
    """Return Hypercorn's settings, as far as its protocol machinery reads them."""
    config = Config()
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = 1_000_000
    config.max_app_queue_size = BODY_QUEUE
    config.websocket_max_message_size = MAX_WEBSOCKET_MESSAGE_BYTES
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn")
    return config


class Connection(TCPServer):
    """Serves one stream. The caller closes the stream afterwards, by force."""

    def __init__(
        self, front: Front, config: Config, context: WorkerContext, stream: trio.abc.Stream
    ) -> None:
        wrapped: Any = ASGIWrapper(front)  # type: ignore[arg-type]
        untyped: Any = stream
        super().__init__(wrapped, config, context, LifespanState({}), untyped)
        self._is_closing = False
        self._is_done = False
        self._waiting = trio.CancelScope()
        self._deadline = inf

    async def run(self) -> None:
        """Serve until either side is done. Cancelling drops what was not sent."""
        async with trio.open_nursery() as nursery:
            tasks: Any = _Tasks(nursery)
            self._task_group = tasks
            self._http = _Http1(
                self.app,
                self.config,
                self.context,
                tasks,
                ConnectionState(self.state),
                False,
                None,
                None,
                self.protocol_send,
            )
            self.protocol: Any = self._http
            await self.idle_task.restart(tasks, self._idle_timeout)
            await self._read_data()
            await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        """Do what the protocol asks for: send, close, or mind the time again.

        Raises ClientGone if there is nobody to send to.
        """
        match event:
            case RawData(data=data):
                await self._send(data)
            case Closed():
                self._begin_close()
                await self.protocol.handle(Closed())
            case Updated(idle=True):
                await self.idle_task.restart(self._task_group, self._idle_timeout)
            case Updated():
                await self.idle_task.stop()

    async def _send(self, data: bytes) -> None:
        try:
            async with self.send_lock:
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._finish("the client has gone")
            raise ClientGone("the client has gone") from exc
        except trio.Cancelled:
            # Part of it may be sent: nothing can follow on this connection.
            self._finish("a write was cut off")
            raise

    async def _read_data(self) -> None:
        try:
            while (data := await self._receive()) is not None:
                if not self._is_closing:
                    await self.protocol.handle(RawData(data))
                if not data:
                    break
        except ClientGone:
            pass
        await self.protocol.handle(Closed())

    async def _receive(self) -> bytes | None:
        """Return the next bytes, none at their end, or None if the connection is done."""
        if not self._is_done:
            with trio.CancelScope(deadline=self._deadline) as self._waiting:
                try:
                    return bytes(await self.stream.receive_some(MAX_RECV))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return b""
        return None

    def _begin_close(self) -> None:
        """Read on for a moment if the client is in the middle of a request, else be done."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._http.is_mid_request:
            self._deadline = self._waiting.deadline = trio.current_time() + LINGER_SECONDS
        else:
            self._finish("the connection is done")

    def _finish(self, reason: str) -> None:
        """Read nothing more."""
        self._is_done = True
        self._waiting.cancel(reason=reason)

    async def _idle_timeout(self) -> None:
        with trio.move_on_after(self.config.keep_alive_timeout):
            await self.context.terminated.wait()
        self._finish("the connection was idle")


class _Tasks:
    """The tasks of a connection, as Hypercorn's protocols start them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def spawn_app(
        self, app: Any, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        """Start the application on one request, and return how to hand it messages."""
        to_app, from_connection = trio.open_memory_channel[Any](config.max_app_queue_size)

        async def run() -> None:
            try:
                # Closed as soon as the application has ended: whoever still waits to hand it
                # something goes on.
                with from_connection:
                    await app(scope, from_connection.receive, send, None, None)
                await send(None)
            except ClientGone:
                pass

        async def put(message: Any) -> None:
            with suppress(trio.BrokenResourceError):
                await to_app.send(message)

        self._nursery.start_soon(run)
        return put

    def spawn(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start anything else."""
        self._nursery.start_soon(task, *args)


class _Http1(H11Protocol):
    """HTTP/1.1 and websockets, nothing else; its own errors are JSON too."""

    @property
    def is_mid_request(self) -> bool:
        """Say whether the client may still be sending what nobody will read."""
        return self.connection.their_state in (h11.SEND_BODY, h11.ERROR)

    async def _check_protocol(self, event: h11.Request) -> None:
        """Upgrade to no HTTP/2."""

    async def _create_stream(self, request: h11.Request) -> None:
        # Without its offer, no compression of websocket messages is agreed on.
        headers = [pair for pair in request.headers if pair[0] != b"sec-websocket-extensions"]
        await super()._create_stream(
            h11.Request(
                method=request.method,
                target=request.target,
                headers=headers,
                http_version=request.http_version,
            )
        )

    async def _send_error_response(self, status_code: int) -> None:
        problem = Problem(400, "invalid_request", f"this is no valid HTTP request ({status_code})")
        headers = [*problem.raw_headers(), (b"connection", b"close")]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=headers))
        await self._send_h11_event(h11.Data(data=problem.body()))
        await self._send_h11_event(h11.EndOfMessage())
