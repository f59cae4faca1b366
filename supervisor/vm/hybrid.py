"""Hybrid vsock: a guest's ports behind UNIX sockets.

To reach port P of the guest, connect to the device's socket, write `CONNECT P`, and read one line:
`OK <number>`. Whatever follows the line is the guest's. Anything else, or the end, is a refusal.
The number differs between devices and means nothing here.

Nothing may be written before the `OK`: some devices lose it. And once `CONNECT` is on its way the
connection must stay open until the answer: vhost-device-vsock 0.3 dies writing `OK` to a peer that
has left, and spins on one that left before its line was read. So `dial` belongs into a task that
nobody cancels but the machine's end; supervisor/vm/vsock.py sees to that.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import trio

from supervisor.vm.machine import GuestUnreachable

MAX_ANSWER_BYTES = 64
"""`OK 4294967295\n` has 14."""
BACKLOG = 128
DRAIN_BYTES = 1 << 20
"""How much unread input a close throws away; more than a socket's buffer holds."""


class Handshake:
    """The host's side of `CONNECT`, as bytes in and a verdict out."""

    def __init__(self, port: int) -> None:
        self.request = b"CONNECT %d\n" % port
        self._answer = bytearray()

    def feed(self, data: bytes) -> bytes | None:
        """Take received bytes. Return those behind the answer once it has come, until then None.

        Raises GuestUnreachable for any answer but OK; empty `data` is the end of the stream.
        """
        if not data:
            raise GuestUnreachable("the guest refused the connection")
        self._answer += data
        line, newline, rest = self._answer.partition(b"\n")
        if len(line) >= MAX_ANSWER_BYTES:
            raise GuestUnreachable("the vsock device answered with an overlong line")
        if not newline:
            return None
        word, _, number = line.partition(b" ")
        if word != b"OK" or not number.strip().isdigit():
            raise GuestUnreachable(f"the vsock device answered {bytes(line)!r}")
        return bytes(rest)


class HybridStream(trio.abc.Stream):
    """A connection to or from a guest. It cannot be half-closed, only closed."""

    def __init__(self, stream: trio.SocketStream, early: bytes = b"") -> None:
        self._stream = stream
        self._early = early
        """Came in behind the handshake's answer and is read first."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._early:
            return bytes(await self._stream.receive_some(max_bytes))
        await trio.lowlevel.checkpoint()
        end = len(self._early) if max_bytes is None else max_bytes
        data, self._early = self._early[:end], self._early[end:]
        return data

    async def aclose(self) -> None:
        self.close_nowait()
        await trio.lowlevel.checkpoint()

    def close_nowait(self) -> None:
        """Close, so that the guest learns of it.

        A UNIX socket that is closed with unread input gives the peer ECONNRESET, and on that error
        vhost-device-vsock 0.3 forgets the connection without telling the guest. So the input goes
        first. (What comes in between is left to the heartbeats.)
        """
        self._early = b""
        self._drain()
        self._stream.socket.close()

    def _drain(self) -> None:
        fd = self._stream.socket.fileno()
        drained = 0
        while fd >= 0 and drained < DRAIN_BYTES:
            try:
                data = os.read(fd, 65536)  # never waits: trio's sockets are non-blocking
            except OSError:
                return
            if not data:
                return
            drained += len(data)


class HybridListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts what the guest connects to one port of the host."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener

    async def accept(self) -> trio.abc.Stream:
        return HybridStream(await self._listener.accept())

    async def aclose(self) -> None:
        await self._listener.aclose()


async def dial(path: Path, port: int) -> HybridStream:
    """Connect to `port` of the guest behind the device's socket `path`.

    Raises GuestUnreachable. See above for who may cancel this.
    """
    handshake = Handshake(port)
    stream = _connect_and_ask(path, handshake.request)
    try:
        while True:
            try:
                early = handshake.feed(await stream.receive_some(4096))
            except trio.BrokenResourceError as exc:
                raise GuestUnreachable("the vsock device broke the connection") from exc
            if early is not None:
                return HybridStream(stream, early)
    except BaseException:
        stream.socket.close()
        raise


def _connect_and_ask(path: Path, request: bytes) -> trio.SocketStream:
    """Connect and send the line in one go: there is no moment at which a cancel could come between.

    Neither call waits. A UNIX socket connects at once or not at all, and a new one has room.
    """
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as exc:  # no descriptor is left; there may be one at the next try
        raise GuestUnreachable(f"the host cannot make a socket: {exc.strerror}") from exc
    try:
        sock.connect(os.fspath(path))
        sock.sendall(request)
    except OSError as exc:  # BlockingIOError: the backlog is full
        sock.close()
        raise GuestUnreachable(f"the vsock device takes no connection: {exc.strerror}") from exc
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


def listen_sync(path: Path) -> HybridListener:
    """Listen where the device looks for a port of the host: `<its own socket>_<port>`.

    The device connects from its only thread, and waits while the backlog is full; a guest can only
    hold up itself with that.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # The directory is the device's user's: should this be a link by then, it is not followed.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(os.fspath(path))
        owner = path.parent.stat()
        if owner.st_uid != os.geteuid():
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return HybridListener(trio.SocketListener(trio.socket.from_stdlib_socket(sock)))
