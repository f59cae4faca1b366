"""Streams to and from the supervisor over AF_VSOCK.

No stream here is ever half-closed: some vsock devices lose the other direction, or wedge.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio

HOST_CID = 2

Connect = Callable[[int], Awaitable[trio.SocketStream]]
"""Connects to a port of the supervisor. Raises OSError."""


async def connect(port: int) -> trio.SocketStream:
    """Return a stream to `port` of the supervisor. Raises OSError; the caller closes it."""
    sock = trio.socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        await sock.connect((HOST_CID, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)
