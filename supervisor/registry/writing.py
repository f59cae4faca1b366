"""What an upload receives, on its way to the disk: whole MiBs go past the page cache.

A push must wait for the disk anyway, so a copy in the page cache makes it no shorter: it costs the
copying, the memory, and whatever else that memory held (the disks of machines, images). What is
less than a MiB goes through the page cache: small blobs, the end of a large one, and everything
on a file system that knows no other way.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence

from supervisor.registry.room import require_room_sync

BLOCK_BYTES = 1 << 20
"""What goes past the page cache begins and ends at multiples of this."""

Piece = bytes | memoryview


class Buffers:
    """Memory that lies as a disk wants it. As many blocks as threads write at once, kept."""

    def __init__(self) -> None:
        self._idle: list[mmap.mmap] = []

    def take(self) -> mmap.mmap:
        """Return a block for one thread."""
        try:
            return self._idle.pop()
        except IndexError:
            return mmap.mmap(-1, BLOCK_BYTES)

    def give_back(self, block: mmap.mmap) -> None:
        """Let another thread have it."""
        self._idle.append(block)


class Writer:
    """The open file of one upload. One thread at a time; whoever opens it closes it."""

    def __init__(self, fd: int, buffers: Buffers) -> None:
        self._fd = fd
        self._buffers = buffers
        # None: not opened yet, or this file system does not have it.
        self._direct: int | None = None
        self._may_be_direct = True

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
        if self._direct is not None:
            os.close(self._direct)

    def write_sync(self, offset: int, pieces: Sequence[Piece]) -> None:
        """Write `pieces` at `offset`. Raises OSError, also before the reserve."""
        length = sum(map(len, pieces))
        require_room_sync(self._fd, length)
        if offset % BLOCK_BYTES == 0 and length == BLOCK_BYTES and self._open_direct():
            self._write_block(offset, pieces)
        else:
            self._write_cached(offset, pieces, length)

    def _write_block(self, offset: int, pieces: Sequence[Piece]) -> None:
        block = self._buffers.take()
        try:
            with memoryview(block) as view:
                end = 0
                for piece in pieces:
                    start, end = end, end + len(piece)
                    view[start:end] = piece
                written = self._write_direct(offset, view)
                if written < BLOCK_BYTES:
                    with view[written:] as rest:
                        self._write_cached(offset + written, [rest], len(rest))
        finally:
            self._buffers.give_back(block)

    def _write_direct(self, offset: int, view: memoryview) -> int:
        """Return how much was written; the rest needs another way."""
        assert self._direct is not None
        try:
            return os.pwritev(self._direct, [view], offset)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            # Blocks of this disk are larger than anybody's, or its file system changed its mind.
            os.close(self._direct)
            self._direct, self._may_be_direct = None, False
            return 0

    def _open_direct(self) -> bool:
        if self._direct is None and self._may_be_direct:
            try:
                # Not by its name, which a discarded upload has no longer.
                self._direct = os.open(
                    f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC
                )
            except OSError as exc:
                if exc.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                self._may_be_direct = False
        return self._direct is not None

    def _write_cached(self, offset: int, pieces: Sequence[Piece], length: int) -> None:
        start = offset
        written = os.pwritev(self._fd, pieces, offset)
        if written < length:
            # Rare (a full disk, a signal): finish in one piece, or learn why not.
            rest = b"".join(pieces)[written:]
            while rest:
                offset += written
                written = os.pwrite(self._fd, rest, offset)
                rest = rest[written:]
        # Despite its name it begins to write back what is dirty, so that the sync at the end is
        # short; it drops only what is on the disk already, and none of this is.
        os.posix_fadvise(self._fd, start, length, os.POSIX_FADV_DONTNEED)
