"""A listener of memory streams."""

from __future__ import annotations

import trio
import trio.testing


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts what `connect` makes. In lockstep, a write waits until it is read."""

    def __init__(self, *, in_lockstep: bool = False) -> None:
        self._in_lockstep = in_lockstep
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](64)

    def connect(self) -> trio.abc.Stream:
        """Return the other end of a connection that is accepted next."""
        make = (
            trio.testing.lockstep_stream_pair
            if self._in_lockstep
            else trio.testing.memory_stream_pair
        )
        near, far = make()
        self._send.send_nowait(far)
        return near

    async def accept(self) -> trio.abc.Stream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        """Close it, and what was never accepted."""
        self._send.close()
        while True:
            try:
                await trio.aclose_forcefully(self._receive.receive_nowait())
            except (trio.EndOfChannel, trio.ClosedResourceError):
                break
        self._receive.close()
