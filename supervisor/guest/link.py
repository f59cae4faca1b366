"""The control connection to the agent: typed messages over a stream that may lie, stall or break.

Everything that can go wrong with the peer leaves here as GuestLost; nothing else does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import trio

from agent import wire
from supervisor.errors import GuestLost, HostError
from supervisor.model.build import ErrorReason
from supervisor.runtime.clock import Clock

KEPT_FRAMES = 20
_RECEIVE_BYTES = 64 << 10


class GuestLink:
    """A connected agent. One task sends, one task receives."""

    def __init__(self, stream: trio.abc.Stream, *, silence_seconds: float) -> None:
        self._stream = stream
        self._silence_seconds = silence_seconds
        self._decoder = wire.FrameDecoder()
        self._received: Iterator[wire.Message | wire.Unknown] = iter(())
        self._send_lock = trio.Lock()
        self._recent: deque[tuple[float, str]] = deque(maxlen=KEPT_FRAMES)

    async def send(self, message: wire.Message) -> None:
        """Send one message. If this is cancelled the link is unusable. Raises GuestLost."""
        try:
            frame = wire.encode(message)
        except (wire.WireError, UnicodeEncodeError) as exc:
            raise HostError(f"a {message.TYPE} message cannot be sent: {exc}") from exc
        try:
            async with self._send_lock:
                with trio.fail_after(self._silence_seconds):
                    await self._stream.send_all(frame)
        except trio.TooSlowError as exc:
            why = f"the guest took no message for {self._silence_seconds:g} s"
            raise GuestLost(why, reason=ErrorReason.GUEST_SILENT) from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._broken("the connection to the guest broke") from exc
        self._recent.append((trio.current_time(), f"sent {message.TYPE}"))

    async def receive(self) -> wire.Message | wire.Unknown:
        """Return the next message.

        Raises GuestLost at the end of the stream, after a malformed frame, and after
        `silence_seconds` without a single byte: the agent sends a heartbeat far more often.
        """
        # One read can hold thousands of messages. Each is decoded when it is asked for, and others
        # get their turn in between.
        await trio.lowlevel.checkpoint()
        while True:
            try:
                for message in self._received:
                    self._note_received(message)
                    return message
            except wire.WireError as exc:
                raise GuestLost(f"the guest broke the protocol: {exc}") from exc
            self._received = self._decoder.feed(await self._receive_some())

    async def receive_hello(self) -> wire.Hello:
        """Return the agent's first message. Raises GuestLost if it is any other."""
        message = await self.receive()
        if not isinstance(message, wire.Hello):
            raise GuestLost("the guest's first message is not a hello")
        if message.protocol != wire.PROTOCOL_VERSION:
            raise GuestLost(
                f"the agent speaks protocol {message.protocol}, this host {wire.PROTOCOL_VERSION};"
                " rebuild the builder image"
            )
        return message

    def recent_frames(self) -> str:
        """Return the last messages of both sides, a line each: when, which, never their content."""
        now = trio.current_time()
        lines = [f"{now - at:8.3f} s ago: {what}" for at, what in self._recent]
        if not self._decoder.is_clean:
            lines.append("the beginning of a message that never ended")
        return "\n".join(lines)

    async def aclose(self) -> None:
        """Close the connection without politeness."""
        await trio.aclose_forcefully(self._stream)

    async def _receive_some(self) -> bytes | bytearray:
        try:
            with trio.fail_after(self._silence_seconds):
                data = await self._stream.receive_some(_RECEIVE_BYTES)
        except trio.TooSlowError as exc:
            why = f"the guest said nothing for {self._silence_seconds:g} s"
            raise GuestLost(why, reason=ErrorReason.GUEST_SILENT) from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._broken("the connection to the guest broke") from exc
        if not data:
            raise self._broken("the guest closed its connection")
        return data

    def _broken(self, what: str) -> GuestLost:
        where = "" if self._decoder.is_clean else " in the middle of a message"
        return GuestLost(what + where, reason=ErrorReason.LINK_LOST)

    def _note_received(self, message: wire.Message | wire.Unknown) -> None:
        kind = "a message of unknown type" if isinstance(message, wire.Unknown) else message.TYPE
        seq = getattr(message, "seq", None)
        number = "" if seq is None else f" {seq}"
        self._recent.append((trio.current_time(), f"received {kind}{number}"))


async def send_heartbeats(link: GuestLink, now: Clock) -> None:
    """Show the guest that the host is alive, until cancelled."""
    while True:
        await trio.sleep(wire.HEARTBEAT_SECONDS)
        await link.send(wire.Heartbeat(now()))
