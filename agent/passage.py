"""Bytes from one socket to another without passing through the program: splice(2) over a pipe.

An interpreter that is itself emulated is slow at everything; like this it says "go on" once for
many bytes, and the kernel copies them once less: a third less of the processor, in emulation.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

import trio

PIPE_BYTES = 1 << 20
"""What is on the way at most; a system's own limit for pipes unless it was lowered."""


class Passage:
    """One direction. Both sockets stay the caller's; the pipe is closed by `close`."""

    def __init__(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        """Raises OSError if there are no descriptors left."""
        self._source = source.socket
        self._sink = sink.socket
        self._outlet, self._inlet = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._held = 0
        with suppress(OSError):  # a smaller one passes as many, in more turns
            fcntl.fcntl(self._inlet, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def close(self) -> None:
        """Close the pipe; what is in it is lost."""
        os.close(self._outlet)
        os.close(self._inlet)

    async def take(self) -> bool:
        """Wait until the source has sent something and hold it; False at its end. Raises OSError.

        What was taken before has been given or dropped. Cancellation takes nothing.
        """
        assert not self._held, "what was taken before is still held"
        await trio.lowlevel.checkpoint()
        while True:
            try:
                self._held = os.splice(
                    self._source.fileno(), self._inlet, PIPE_BYTES, flags=os.SPLICE_F_NONBLOCK
                )
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._source.fileno())
            else:
                return self._held > 0

    async def give(self) -> None:
        """Send what is held to the sink. Raises OSError; then some is held still.

        If cancelled, some may have been sent, and the rest is held.
        """
        await trio.lowlevel.checkpoint()
        while self._held:
            try:
                self._held -= os.splice(
                    self._outlet, self._sink.fileno(), self._held, flags=os.SPLICE_F_NONBLOCK
                )
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sink.fileno())

    def drop(self) -> None:
        """Forget what is held."""
        while self._held:
            self._held -= len(os.read(self._outlet, self._held))
