"""From chunks of output to lines. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_LINE_BYTES = 64 << 10
"""A longer line is delivered in pieces, each but the last marked as partial (the contract)."""
MAX_OPEN_LINES = 128
"""Streams that may hold an unfinished line at once: with the length of a line, the bound on what a
guest can make us remember. One more is delivered in pieces, as they come.
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of output without its end, or a piece of one."""

    step: str
    stream: int
    time: float
    content: str
    is_partial: bool
    """Whether the line goes on in the next piece of this stream."""


class LineAssembler:
    """Joins the chunks of each stream of each step into lines."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], bytes] = {}

    def feed(self, step: str, stream: int, time: float, data: bytes) -> Iterator[Line]:
        """Yield the lines that `data` completes, in order, and the pieces of over-long ones.

        Read it to its end before the next call: what is left over is kept then.
        """
        key = (step, stream)
        *complete, rest = (self._open.pop(key, b"") + data).split(b"\n")
        for line in complete:
            while len(line) > MAX_LINE_BYTES:
                piece, line = _cut(line)
                yield Line(step, stream, time, _text(piece), is_partial=True)
            yield Line(step, stream, time, _text(line.removesuffix(b"\r")), is_partial=False)
        while len(rest) > MAX_LINE_BYTES:
            piece, rest = _cut(rest)
            yield Line(step, stream, time, _text(piece), is_partial=True)
        if not rest:
            return
        if len(self._open) >= MAX_OPEN_LINES:
            yield Line(step, stream, time, _text(rest), is_partial=True)
        else:
            self._open[key] = rest

    def finish(self, step: str, time: float) -> Iterator[Line]:
        """Yield what a step that has ended left without a newline."""
        for key in [key for key in self._open if key[0] == step]:
            yield Line(step, key[1], time, _text(self._open.pop(key)), is_partial=False)

    def finish_all(self, time: float) -> Iterator[Line]:
        """Yield every unfinished line: nothing more will come."""
        for step in dict.fromkeys(step for step, _ in self._open):
            yield from self.finish(step, time)


def size_of(lines: Iterable[Line]) -> int:
    """Return how many bytes of output lines are, with their ends."""
    return sum(len(line.content.encode()) + (not line.is_partial) for line in lines)


def _cut(line: bytes) -> tuple[bytes, bytes]:
    """Cut an over-long line: at the limit, but not inside a UTF-8 character."""
    at = MAX_LINE_BYTES
    for candidate in range(MAX_LINE_BYTES, MAX_LINE_BYTES - 4, -1):
        if line[candidate] & 0b1100_0000 != 0b1000_0000:
            at = candidate
            break
    return line[:at], line[at:]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
