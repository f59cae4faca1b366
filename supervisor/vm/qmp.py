"""The few words of QMP that a machine needs: be there, say why you stop, quit.

QEMU's Machine Protocol is one JSON object a line. The VMM holds a hostile guest, so it is believed
no further than that: lines are limited, and nonsense ends the session, after which signals have to
do.
"""

from __future__ import annotations

import json
import socket
from typing import Any

import trio

MAX_LINE_BYTES = 1 << 16
ANSWER_SECONDS = 5.0
"""A VMM that runs answers within milliseconds, whatever its guest does; the host may be busy."""

_NEGOTIATE = b'{"execute":"qmp_capabilities"}\n'
_QUIT = b'{"execute":"quit"}\n'
_ASK = b'{"execute":"query-status","id":"ask"}\n'


class QmpBroken(Exception):
    """The other end went away, or does not speak QMP."""


class LineDecoder:
    """Turns received bytes into JSON objects, one for each line."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Return the objects that `data` completes. Raises QmpBroken."""
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        if any(len(line) > MAX_LINE_BYTES for line in (*lines, rest)):
            raise QmpBroken(f"a line of QMP is longer than {MAX_LINE_BYTES} bytes")
        self._buffer = rest
        return [_parse(bytes(line)) for line in lines if line.strip()]


class Qmp:
    """A session over a connected socket, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._decoder = LineDecoder()
        self._is_ready = False
        self._answered = trio.Event()
        self.stop_reason: str | None = None
        """Why the VMM says that it stops: `guest-shutdown`, `guest-reset`, `host-qmp-quit` …"""

    async def negotiate(self) -> None:
        """Wait for the greeting, and begin. Raises QmpBroken if the VMM goes away before."""
        messages = await self._receive()
        if not messages or "QMP" not in messages[0]:
            raise QmpBroken("the VMM did not greet")
        await self._send(_NEGOTIATE)
        while not self._is_ready:
            for message in await self._receive():
                if "error" in message:
                    raise QmpBroken("the VMM refused to negotiate")
                self._is_ready = self._is_ready or "return" in message

    async def follow(self) -> None:
        """Take in events until the VMM ends or the session breaks."""
        try:
            while True:
                for message in await self._receive():
                    self._note(message)
        except QmpBroken:
            self._is_ready = False

    def quit_nowait(self) -> bool:
        """Ask the VMM to end, now. Says whether the request could be handed over."""
        return self._send_nowait(_QUIT)

    async def is_answering(self) -> bool:
        """Say whether the VMM answers in time, while `follow` takes in what it says."""
        answered = self._answered
        if self._send_nowait(_ASK):
            with trio.move_on_after(ANSWER_SECONDS):
                await answered.wait()
        return answered.is_set()

    def close(self) -> None:
        """Close the connection; the VMM does not mind."""
        self._stream.socket.close()

    def _send_nowait(self, line: bytes) -> bool:
        if not self._is_ready:
            return False
        try:
            return self._sock.send(line, socket.MSG_DONTWAIT) == len(line)
        except OSError:
            return False

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("id") == "ask":
            self._answered.set()
            self._answered = trio.Event()
        if message.get("event") == "SHUTDOWN" and isinstance(message.get("data"), dict):
            reason = message["data"].get("reason")
            self.stop_reason = reason[:64] if isinstance(reason, str) else None

    async def _send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as exc:
            raise QmpBroken("the VMM closed its control connection") from exc

    async def _receive(self) -> list[dict[str, Any]]:
        try:
            data = await self._stream.receive_some(65536)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise QmpBroken("the VMM's control connection broke") from exc
        if not data:
            raise QmpBroken("the VMM closed its control connection")
        return self._decoder.feed(bytes(data))


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise QmpBroken("the VMM sent a line that is not JSON") from exc
    if not isinstance(message, dict):
        raise QmpBroken("the VMM sent a line that is not an object")
    return message
