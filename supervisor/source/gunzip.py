"""Decompress a gzip file (RFC 1952) piece by piece, in constant memory.

Several members behind one another are one file, as gzip(1) and pigz write it, and zero bytes behind
the last one are padding. The checksum and length of each member are verified.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from supervisor.errors import InvalidSource

INPUT_BYTES = 32 << 10
"""How much to feed at once. Small, because zlib hands back what it did not use as a copy: with
large pieces an upload of a million tiny members would cost quadratic time."""
OUTPUT_BYTES = 1 << 20
"""The most that is held decompressed, however well it was compressed."""
MAX_MEMBERS = 1_000_000
"""The block-wise gzip of 10 GiB has 160,000; more than a million is an attack on the processor."""

_GZIP = 16 + zlib.MAX_WBITS
_SIGNATURES = (
    (b"PK", 0, "a zip archive"),
    (b"\xfd7zXZ\0", 0, "an xz file"),
    (b"\x28\xb5\x2f\xfd", 0, "a zstd file"),
    (b"BZh", 0, "a bzip2 file"),
    (b"ustar", 257, "an uncompressed tar archive"),
)


def gunzip(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the decompressed content, at most `OUTPUT_BYTES` at a time.

    `pieces` are non-empty and at most `INPUT_BYTES` each. Raises InvalidSource if they are not a
    whole gzip file. Whoever has had enough stops taking: nothing is decompressed ahead.
    """
    member: zlib._Decompress | None = None
    members = 0
    for piece in pieces:
        data = piece
        if members == 0:
            _check_signature(data)
        while True:
            if member is None:
                if members > 0:
                    data = data.lstrip(b"\0")  # padding
                if not data:
                    break
                members += 1
                if members > MAX_MEMBERS:
                    raise InvalidSource(f"the source has more than {MAX_MEMBERS:,} gzip members")
                member = zlib.decompressobj(_GZIP)
            try:
                content = member.decompress(data, OUTPUT_BYTES)
            except zlib.error as exc:
                where = "is damaged" if members == 1 else "has something else behind its gzip data"
                raise InvalidSource(f"the source {where} ({exc})") from exc
            if content:
                yield content
            if member.eof:
                data = member.unused_data
                member = None
                continue
            data = member.unconsumed_tail
            if not data and len(content) < OUTPUT_BYTES:
                break  # with a full output, zlib may hold more that needs no further input
    if members == 0:
        raise InvalidSource("the source is empty; send a gzip-compressed tar archive")
    if member is not None:
        raise InvalidSource("the source ends in the middle of its gzip data; was it cut off?")


def _check_signature(start: bytes) -> None:
    if start[:2] == b"\x1f\x8b" or start == b"\x1f":
        return
    what = "not a gzip file"
    for signature, offset, name in _SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            what = name
    raise InvalidSource(
        f"the source is {what}; send a gzip-compressed tar archive, for example by: tar -czf"
    )
