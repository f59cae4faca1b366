"""Keeps secrets' values out of what leaves the machine. Pure.

A value that is split over two chunks of output is found too: the end of a chunk that may be the
beginning of a value is held back until the next chunk (or the end) decides. For every way of
cutting a stream into chunks the output is the same as for the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = b"***"
_MIN_LINE_BYTES = 8
"""Lines of a longer value (a key in PEM, say) that are masked one by one: shorter ones hide
nothing, and masking every `}` of a JSON file would hide the log instead."""


class Redaction:
    """The values to hide. Make a `stream()` for each flow of bytes, so that flows do not mix."""

    def __init__(self, values: Iterable[bytes] = ()) -> None:
        needles = {needle for value in values for needle in _needles(value)}
        # Longest first, so that of two values at one place the longer is masked as a whole.
        self.needles = tuple(sorted(needles, key=lambda needle: (-len(needle), needle)))
        self.pattern = re.compile(b"|".join(map(re.escape, self.needles)), re.DOTALL)

    def bytes(self, data: bytes) -> bytes:
        """Return `data`, which is whole, with every value masked."""
        return self.pattern.sub(MASK, data) if self.needles else data

    def text(self, text: str) -> str:
        """Return `text` with every value masked."""
        if not self.needles:
            return text
        data = text.encode("utf-8", "surrogateescape")
        return self.bytes(data).decode("utf-8", "surrogateescape")

    def stream(self) -> RedactedStream:
        """Return a redactor for one flow of bytes."""
        return RedactedStream(self)


class RedactedStream:
    """Masks values in a flow of chunks, holding back less than the longest value."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next chunk and return what can be shown by now."""
        if not self._redaction.needles:
            return data
        data = self._held + data
        shown: list[bytes] = []
        at = 0
        undecided = self._undecided_from(data, at)
        while (match := self._redaction.pattern.search(data, at)) and match.start() < undecided:
            shown += (data[at : match.start()], MASK)
            at = match.end()
            if at > undecided:  # the match has swallowed what looked like a beginning
                undecided = self._undecided_from(data, at)
        self._held = data[undecided:]
        shown.append(data[at:undecided])
        return b"".join(shown)

    def flush(self) -> bytes:
        """Return what was held back: nothing follows."""
        held, self._held = self._held, b""
        return self._redaction.bytes(held)

    def _undecided_from(self, data: bytes, at: int) -> int:
        """Return the first index from which `data` is a proper beginning of some value."""
        first = len(data)
        for needle in self._redaction.needles:
            start = max(at, len(data) - len(needle) + 1)
            while (start := data.find(needle[:1], start, first)) >= 0:
                if needle.startswith(data[start:]):
                    first = start
                    break
                start += 1
        return first


def _needles(value: bytes) -> Iterable[bytes]:
    stripped = value.strip()
    if not stripped:
        return
    yield value
    yield stripped  # a file ends with a newline, what a program prints of it need not
    lines = stripped.splitlines()
    if len(lines) > 1:
        yield from (line.strip() for line in lines if len(line.strip()) >= _MIN_LINE_BYTES)
