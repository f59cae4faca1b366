"""Byte ranges: which part of a blob is asked for, and where a chunk of an upload belongs."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MAX_DIGITS = 18
"""Enough for any file, and it bounds the cost of turning digits into a number."""
_BYTE_RANGE = re.compile(rf"bytes=(\d{{0,{_MAX_DIGITS}}})-(\d{{0,{_MAX_DIGITS}}})", re.ASCII)
_CHUNK_RANGE = re.compile(rf"(\d{{1,{_MAX_DIGITS}}})-(\d{{1,{_MAX_DIGITS}}})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` up to, not including, `stop`."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many bytes."""
        return self.stop - self.start


class Unsatisfiable(Exception):
    """The range lies outside of the content."""


def parse_byte_range(header: str, size_bytes: int) -> Span | None:
    """Return the part of `size_bytes` that a Range header asks for.

    None means: answer with the whole content, which RFC 9110 allows for several ranges, other units
    and anything malformed. Raises Unsatisfiable for a range that covers no byte.
    """
    match = _BYTE_RANGE.fullmatch(header.strip())
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        length = min(int(last), size_bytes)
        span = Span(size_bytes - length, size_bytes)
    else:
        stop = size_bytes if not last else min(int(last) + 1, size_bytes)
        span = Span(int(first), stop)
    if span.length <= 0:
        raise Unsatisfiable
    return span


def parse_chunk_range(header: str) -> Span | None:
    """Return where a chunk belongs, from a Content-Range of the form `<first>-<last>`, or None."""
    match = _CHUNK_RANGE.fullmatch(header.strip())
    if match is None:
        return None
    first, last = int(match[1]), int(match[2])
    return Span(first, last + 1) if first <= last else None
