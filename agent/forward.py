"""TCP ports on the guest's own address that lead to vsock ports of the supervisor.

The protocol behind them is HTTP, whose framing says where a message ends. So when the local side
half-closes, nothing is passed on (a half-closed vsock stream loses its other direction): what the
supervisor still sends is delivered, and when it has been quiet for a while both sides are closed.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack, closing
from functools import partial

import trio

from agent.passage import Passage
from agent.vsock import Connect

MAX_CONNECTIONS = 128
"""At once, per port. BuildKit uses a handful; a step that opens more waits."""
LINGER_SECONDS = 10.0
"""How long the supervisor may be quiet once the local side has said its last."""
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


async def forward(
    host: str,
    port: int,
    connect: Connect,
    vsock_port: int,
    *,
    task_status: trio.TaskStatus[trio.SocketListener] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Forward connections to `host:port` to the supervisor's `vsock_port`, until cancelled.

    Ready when it listens. Raises OSError if the address cannot be used.
    """
    limit = trio.CapacityLimiter(MAX_CONNECTIONS)
    # As bytes: for text Python loads its tables of international names, which takes 30 ms there.
    [listener] = await trio.open_tcp_listeners(port, host=host.encode())
    async with listener, trio.open_nursery() as nursery:
        task_status.started(listener)
        while True:
            token = object()
            await limit.acquire_on_behalf_of(token)
            local = await _accept(listener)
            nursery.start_soon(partial(_serve, local, connect, vsock_port, limit, token))


async def _accept(listener: trio.SocketListener) -> trio.SocketStream:
    while True:
        try:
            return await listener.accept()
        except OSError as exc:
            if exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                raise
            await trio.sleep(0.1)  # descriptors come free when connections end


async def _serve(
    local: trio.SocketStream,
    connect: Connect,
    vsock_port: int,
    limit: trio.CapacityLimiter,
    token: object,
) -> None:
    try:
        async with local:
            try:
                remote = await connect(vsock_port)
            except OSError:
                return  # the local side sees a closed connection, as from a server that is down
            await relay(local, remote)
    finally:
        limit.release_on_behalf_of(token)


async def relay(local: trio.SocketStream, remote: trio.SocketStream) -> None:
    """Carry bytes both ways until either side ends; both are closed then. Errors just end it."""
    async with local, remote:
        with ExitStack() as pipes:
            try:
                up = pipes.enter_context(closing(Passage(local, remote)))
                down = pipes.enter_context(closing(Passage(remote, local)))
            except OSError:
                return  # no descriptors left: the local side sees a closed connection
            async with trio.open_nursery() as nursery:
                quiet = trio.CancelScope()
                has_ended = trio.Event()
                nursery.start_soon(_upward, up, quiet, has_ended)
                with quiet:
                    await _downward(down, local, quiet, has_ended)
                nursery.cancel_scope.cancel(reason="the supervisor's side has ended")


async def _upward(up: Passage, quiet: trio.CancelScope, has_ended: trio.Event) -> None:
    is_deaf = False
    try:
        while await up.take():
            if not is_deaf:
                try:
                    await up.give()
                except _BROKEN:
                    # Keep reading: closing with unread bytes would reset the connection, and what
                    # the supervisor has answered be lost with it.
                    is_deaf = True
            up.drop()
    except _BROKEN:
        quiet.cancel(reason="the local side has broken")
        return
    has_ended.set()
    quiet.deadline = trio.current_time() + LINGER_SECONDS


async def _downward(
    down: Passage, local: trio.SocketStream, quiet: trio.CancelScope, has_ended: trio.Event
) -> None:
    try:
        while await down.take():
            await down.give()
            if has_ended.is_set():
                quiet.deadline = trio.current_time() + LINGER_SECONDS
        # An answer may come before all of the request was read (an error, say).
        await local.send_eof()
        quiet.deadline = trio.current_time() + LINGER_SECONDS
        await has_ended.wait()
    except _BROKEN:
        return
