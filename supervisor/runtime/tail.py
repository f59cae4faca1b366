"""The end of an endless stream, in bounded memory: what errors and evidence quote."""

from __future__ import annotations


class Tail:
    """The last `limit_bytes` of a stream of bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Append `data`, and forget what is now too old."""
        self._data += data[-self._limit :]
        if len(self._data) > self._limit:
            del self._data[: -self._limit]

    def text(self) -> str:
        """Return what is kept as text safe to show: its controls are line ends and tabs only."""
        text = self._data.decode(errors="replace").replace("\r\n", "\n")
        return "".join(
            c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
        )
