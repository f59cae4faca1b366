"""One HTTP connection: Hypercorn's protocol machinery, with every wait bounded.

Hypercorn 0.18's own connection has properties that a daemon cannot have, so it is replaced:

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
* It starts and cancels a task for the idle time between any two requests. Here that is a deadline.

The version is pinned in pyproject.toml; tests/api/test_connections.py holds all of this.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from math import inf
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.worker_context import WorkerContext

from supervisor.api.front import ClientGone, Front
from supervisor.api.http1 import Http1, ServerConfig
from supervisor.runtime.threads import run_in_thread

KEEP_ALIVE_SECONDS = 15.0
"""For the next request on a connection; also for the whole head of the first one."""
LINGER_SECONDS = 2.0
"""For the client to notice an early answer and stop sending."""
MAX_HEAD_BYTES = 32 << 10
MAX_WEBSOCKET_MESSAGE_BYTES = 4 << 20
BODY_QUEUE = 2
"""Pieces of a body (256 KiB) or messages of a websocket between a connection and its application.
"""
FILE_BYTES = 4 << 20
"""Of a file, handed to the kernel at a time: a cancellation waits for no more than that."""
KEEPING_UP_BYTES = 256 << 10
KEEPING_UP_MS = 5
"""A client that takes that much in that time is waited for in the thread that sends to it."""
UNSENT_BYTES = 1 << 20
"""What the kernel may hold of a file for a client that is behind; trio's choice of 16 KiB for short
answers would have it ask for more again and again."""


def make_config() -> Config:
    """Return Hypercorn's settings, as far as its protocol machinery reads them."""
    config = ServerConfig()
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = 1_000_000
    config.max_app_queue_size = BODY_QUEUE
    config.websocket_max_message_size = MAX_WEBSOCKET_MESSAGE_BYTES
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn")
    return config


class Connection:
    """Serves one stream. The caller closes the stream afterwards, by force."""

    def __init__(
        self, front: Front, config: Config, context: WorkerContext, stream: trio.abc.Stream
    ) -> None:
        self._front = front
        self._config = config
        self._context = context
        self._stream = stream
        self._send_lock = trio.Lock()
        self._joined: list[bytes] | None = None
        self._http: Http1
        self._is_closing = False
        self._is_done = False
        self._is_idle = True
        self._waiting = trio.CancelScope()
        self._watching = trio.CancelScope()
        self._deadline = inf

    async def run(self) -> None:
        """Serve until either side is done. Cancelling drops what was not sent."""
        self._mind_the_time(is_idle=True)
        async with trio.open_nursery() as nursery:
            wrapped: Any = ASGIWrapper(self._front)  # type: ignore[arg-type]
            tasks = _Tasks(nursery)
            tasks.http = self._http = Http1(
                wrapped,
                self._config,
                self._context,
                tasks,
                self._obey,
                self._send_file if isinstance(self._stream, trio.SocketStream) else None,
                self._join_writes,
            )
            nursery.start_soon(self._end_when_stopped)
            await self._read()
            self._watching.cancel(reason="the connection has ended")

    async def _obey(self, event: Event) -> None:
        """Do what the protocol asks for: send, close, or mind the time again.

        Raises ClientGone if there is nobody to send to.
        """
        match event:
            case RawData(data=data):
                await self._send(data)
            case Closed():
                self._begin_close()
                await self._http.handle(Closed())
            case Updated(idle=is_idle):
                self._mind_the_time(is_idle=is_idle)

    @asynccontextmanager
    async def _join_writes(self) -> AsyncIterator[None]:
        """Send what is sent in the block in one write. If the block fails, nothing can follow."""
        assert self._joined is None, "blocks of joined writes are not nested"
        self._joined = []
        try:
            yield
        except BaseException:
            self._finish("a write was cut off")
            raise
        finally:
            pieces, self._joined = self._joined, None
        await self._send(b"".join(pieces))

    async def _send(self, data: bytes) -> None:
        if self._joined is not None:
            self._joined.append(data)
            return
        try:
            async with self._send_lock:
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._finish("the client has gone")
            raise ClientGone("the client has gone") from exc
        except trio.Cancelled:
            # Part of it may be sent: nothing can follow on this connection.
            self._finish("a write was cut off")
            raise

    async def _send_file(
        self, fd: int, offset: int, count: int, limiter: trio.CapacityLimiter
    ) -> None:
        """Have the kernel send a part of a file. Raises ClientGone.

        Each piece is sent in a thread: what is not in memory is read from the disk first. The
        piece behind it is asked for meanwhile.
        """
        assert isinstance(self._stream, trio.SocketStream)
        sock = self._stream.socket
        try:
            async with self._send_lock:
                if sock.family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
                end = offset + count
                while offset < end:
                    piece = min(end - offset, FILE_BYTES)
                    ahead = min(end - offset - piece, FILE_BYTES)
                    sent = await run_in_thread(
                        limiter, _send_file_sync, sock.fileno(), fd, offset, piece, ahead
                    )
                    offset += sent
                    if sent < piece:
                        await sock.wait_writable()
        except (OSError, trio.ClosedResourceError) as exc:
            self._finish("the client has gone")
            raise ClientGone("the client has gone") from exc
        except trio.Cancelled:
            self._finish("a write was cut off")
            raise

    async def _read(self) -> None:
        try:
            while (data := await self._receive()) is not None:
                if not self._is_closing:
                    await self._http.receive(data)
                if not data:
                    break
        except ClientGone:
            pass
        await self._http.handle(Closed())

    async def _receive(self) -> bytes | None:
        """Return the next bytes, none at their end, or None if the connection is done."""
        if not self._is_done:
            with trio.CancelScope(deadline=self._deadline) as self._waiting:
                try:
                    return bytes(await self._stream.receive_some(self._http.receive_bytes))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return b""
        return None

    def _mind_the_time(self, *, is_idle: bool) -> None:
        """Wait for the next request only so long; for the rest of one, as long as it takes."""
        self._is_idle = is_idle
        if not self._is_closing:
            seconds = self._config.keep_alive_timeout if is_idle else inf
            self._deadline = self._waiting.deadline = trio.current_time() + seconds

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

    async def _end_when_stopped(self) -> None:
        """End the connection at a stop if it is idle then; a request under way ends it itself."""
        with self._watching:
            await self._context.terminated.wait()
            if self._is_idle:
                self._finish("the listener stops")


class _Tasks:
    """The tasks of a connection, as Hypercorn's protocols start them."""

    http: Http1

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def spawn_app(
        self, app: Any, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        """Start the application on one request, and return how to hand it messages."""
        self.http.extend(scope)
        to_app, from_connection = trio.open_memory_channel[Any](config.max_app_queue_size)

        async def receive() -> Any:
            await self.http.ask_for_body()
            return await from_connection.receive()

        async def run() -> None:
            try:
                # Closed as soon as the application has ended: whoever still waits to hand it
                # something goes on.
                with from_connection:
                    await app(scope, receive, send, None, None)
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


def _send_file_sync(sock: int, fd: int, offset: int, count: int, ahead: int) -> int:
    """Send until all of it is sent, or the client does not keep up; return how much was."""
    if ahead:  # nothing would mean all of the file
        os.posix_fadvise(fd, offset + count, ahead, os.POSIX_FADV_WILLNEED)
    room = select.poll()
    room.register(sock, select.POLLOUT)
    sent = 0
    waited_at = -KEEPING_UP_BYTES
    while sent < count:
        try:
            written = os.sendfile(sock, fd, offset + sent, count - sent)
        except BlockingIOError:
            # A slow client does not hold the thread: that one is waited for in the loop.
            if sent - waited_at < KEEPING_UP_BYTES or not room.poll(KEEPING_UP_MS):
                break
            waited_at = sent
        else:
            assert written, "a file is shorter than what was to be sent of it"
            sent += written
    return sent
