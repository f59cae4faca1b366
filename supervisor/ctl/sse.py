"""Server-sent events (HTML Living Standard, 9.2): bytes in, events out. No I/O here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_EVENT_BYTES = 4 << 20
"""The daemon delivers lines in pieces of 64 KiB; JSON may make six bytes of one."""
_LINE_END = re.compile(rb"\r\n|\n|\r")


class SseError(ValueError):
    """The stream is not one of server-sent events, or has an event that is too large."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event as it was sent. `id` is empty if the event itself had none."""

    id: str
    data: str


class SseParser:
    """Collects bytes until they make events. An event that is cut off by the end is no event."""

    def __init__(self, limit_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = limit_bytes
        self._rest = b""
        self._after_return = False
        self._size = 0
        self._id = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> Iterator[ServerEvent]:
        """Yield every event that `data` completes, in order. Raises SseError."""
        if not data:
            return
        is_return_last = data.endswith(b"\r")
        if self._after_return:
            data = data.removeprefix(b"\n")  # the second half of a line end
        self._after_return = is_return_last
        *lines, self._rest = _LINE_END.split(self._rest + data)
        for line in lines:
            event = self._take_line(line)
            if event is not None:
                yield event
        if self._size + len(self._rest) > self._limit:
            raise SseError(f"an event is larger than {self._limit} bytes")

    def _take_line(self, line: bytes) -> ServerEvent | None:
        if not line:
            event = ServerEvent(self._id, "\n".join(self._data)) if self._data else None
            self._id, self._data, self._size = "", [], 0
            return event
        self._size += len(line)
        if self._size > self._limit:
            raise SseError(f"an event is larger than {self._limit} bytes")
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"data":
            self._data.append(text)
        elif name == b"id" and "\0" not in text:
            self._id = text
        return None
