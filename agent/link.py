"""The control connection to the supervisor: frames in, frames out, and noticing its loss.

One task writes (`write`), so that no frame is ever cut in two by a cancelled sender; everybody else
puts messages into a short queue. Numbers are given on the way out, so they are in order there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import trio

from agent import wire

QUEUE_LENGTH = 32
"""Messages waiting to be written. A supervisor that does not read stops the build's output, and by
that the build; it never costs memory: at most this many pieces of log."""
MISSED_HEARTBEATS = 60
"""So many intervals without a byte, and the supervisor is lost. Intervals are counted and not time,
because a paused machine finds much time gone, and the heartbeats of it still waiting to be read.
They are many because an emulated machine that booted on a busy host may have measured its clock
wrong: one ran seven times too fast. A supervisor that ends takes the machine with it anyway."""
_BATCH_BYTES = 64 << 10
_RECEIVE_BYTES = 64 << 10


class LinkLost(Exception):
    """The connection is of no use any more: ended, broken, or silent."""


class Link:
    """One connected supervisor."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._decoder = wire.FrameDecoder()
        self._into, self._out_of = trio.open_memory_channel[wire.Message](QUEUE_LENGTH)
        self._sequence = 0
        self._has_heard = True
        self._is_finished = False

    async def send(self, message: wire.Message) -> None:
        """Queue one message (none after `finish`). Raises LinkLost. If cancelled, none is sent."""
        if self._is_finished:
            return
        try:
            await self._into.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise LinkLost("the supervisor's connection is gone") from exc

    async def send_all(self, messages: Iterable[wire.Message]) -> None:
        """Queue many."""
        for message in messages:
            await self.send(message)

    def answer_nowait(self, message: wire.Message) -> None:
        """Queue an answer, or none if the queue is full: who does not read misses no answer, and
        what it says next (to stop, perhaps) has to be heard.
        """
        with contextlib.suppress(
            trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError
        ):
            self._into.send_nowait(message)

    async def messages(self) -> AsyncIterator[wire.Message | wire.Unknown]:
        """Yield what the supervisor says. Raises LinkLost at its end and for anything malformed."""
        while True:
            try:
                data = await self._stream.receive_some(_RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                raise LinkLost("the supervisor's connection broke") from exc
            if not data:
                raise LinkLost("the supervisor closed its connection")
            self._has_heard = True
            try:
                for message in self._decoder.feed(data):
                    yield message
            except wire.WireError as exc:
                raise LinkLost(f"the supervisor broke the protocol: {exc}") from exc

    async def write(self) -> None:
        """Write what is queued, until `finish` and then return. Raises LinkLost.

        Cancelling this may cut a frame: the connection is of no use afterwards.
        """
        try:
            async for message in self._out_of:
                batch = self._frame(message)
                while len(batch) < _BATCH_BYTES:
                    try:
                        batch += self._frame(self._out_of.receive_nowait())
                    except (trio.WouldBlock, trio.EndOfChannel):
                        break
                await self._stream.send_all(batch)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise LinkLost("the supervisor's connection broke") from exc
        finally:
            self._out_of.close()

    async def beat(self) -> None:
        """Show that the agent lives, and watch that the supervisor does. Raises LinkLost."""
        missed = 0
        while True:
            await trio.sleep(wire.HEARTBEAT_SECONDS)
            missed = 0 if self._has_heard else missed + 1
            self._has_heard = False
            if missed >= MISSED_HEARTBEATS:
                raise LinkLost(f"the supervisor was silent for {missed} heartbeats")
            await self.send(wire.Heartbeat(time.time()))

    def finish(self) -> None:
        """Queue nothing more: `write` returns when it has written the rest."""
        self._is_finished = True
        self._into.close()

    def _frame(self, message: wire.Message) -> bytes:
        if isinstance(message, wire.Step | wire.Log | wire.Status | wire.BuildResult):
            self._sequence += 1
            message = replace(message, seq=self._sequence)
        return wire.encode(message)
