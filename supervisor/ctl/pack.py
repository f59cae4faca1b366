"""Makes the archive of a context while it is being sent: a gzip-compressed tar, never on disk.

A thread walks and compresses into a pipe, and the upload reads the other end, so memory stays flat
whatever the size, and a slow daemon slows the reading of files. The archive depends only on the
files: names in byte order, owner 0:0, whole seconds, no time in the gzip header.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

import trio

from supervisor.ctl.context import Context, Entry, Survey, printable
from supervisor.ctl.errors import CtlError, UsageError

T = TypeVar("T")

_GZIP = 31
"""zlib's number for the gzip format with its largest window."""
_LEVEL = 1
"""Most of the gain for little of the time; the way to the daemon is mostly a local socket."""
_READ_BYTES = 256 << 10
_SEND_BYTES = 64 << 10
"""The capacity of a pipe."""


@dataclass(slots=True)
class Packed:
    """How far the packing has come; written by its thread, read by whoever shows progress."""

    files: int = 0
    read_bytes: int = 0
    """Bytes of files, before compression."""
    sent_bytes: int = 0
    """Bytes of the archive that the upload has taken."""


class Archive:
    """The archive of one context, read once: `receive` until it returns `b""`.

    `run` makes it, as a task beside the reader, who owns the archive and closes it.
    """

    def __init__(self, context: Context) -> None:
        self.packed = Packed()
        self._context = context
        self._failure: CtlError | None = None
        read_fd, self._write_fd = os.pipe()
        self._stream = trio.lowlevel.FdStream(read_fd)

    def close(self) -> None:
        """Stop reading; a `run` that is still writing then ends too."""
        self._stream.close()
        if self._write_fd >= 0:
            os.close(self._write_fd)
            self._write_fd = -1

    async def run(self) -> None:
        """Pack until the end, or until the reader is gone. What fails is told to the reader."""
        write_fd, self._write_fd = self._write_fd, -1
        if write_fd < 0:  # the upload was refused before this has begun
            await trio.lowlevel.checkpoint()
            return
        has_begun = False

        def work() -> None:
            nonlocal has_begun
            has_begun = True
            self._pack_sync(write_fd)

        try:
            await trio.to_thread.run_sync(work, limiter=trio.CapacityLimiter(1))
        finally:
            if not has_begun:  # cancelled before there was a thread to close it
                os.close(write_fd)

    async def receive(self) -> bytes:
        """Return the next piece, `b""` at the end. Raises UsageError if a file cannot be read."""
        data = bytes(await self._stream.receive_some(_SEND_BYTES))
        if not data and self._failure is not None:
            raise self._failure
        self.packed.sent_bytes += len(data)
        return data

    def _pack_sync(self, write_fd: int) -> None:
        with open(write_fd, "wb", buffering=0) as pipe:
            # The failure is there before the end that the reader sees.
            try:
                write_archive_sync(self._context, pipe, self.packed)
            except BrokenPipeError:
                pass  # the reader has gone; it knows why
            except CtlError as exc:
                self._failure = exc
            except OSError as exc:
                self._failure = UsageError(f"cannot pack the context: {exc.strerror or exc}")


def write_archive_sync(context: Context, sink: BinaryIO, packed: Packed) -> None:
    """Write the archive of `context` to `sink`. Raises UsageError naming an unreadable file."""
    gzip = _Gzip(sink)
    links: dict[tuple[int, int], str] = {}  # files with several names, by device and inode
    for entry in context.walk(Survey()):
        header = _header(entry)
        if stat.S_ISREG(entry.status.st_mode) and entry.status.st_nlink > 1:
            key = (entry.status.st_dev, entry.status.st_ino)
            if (first := links.setdefault(key, entry.path)) != entry.path:
                header.type, header.linkname = tarfile.LNKTYPE, first
        if header.isreg():
            _write_file(gzip, header, entry, packed)
        else:
            gzip.write(_encode(header))
    gzip.write(bytes(2 * tarfile.BLOCKSIZE))
    gzip.finish()


def _header(entry: Entry) -> tarfile.TarInfo:
    header = tarfile.TarInfo(entry.path)
    mode = entry.status.st_mode
    header.mode = stat.S_IMODE(mode)
    header.mtime = entry.status.st_mtime_ns // 1_000_000_000
    if stat.S_ISDIR(mode):
        header.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(mode):
        header.type = tarfile.SYMTYPE
        header.linkname = _read(os.readlink, entry)
    return header


def _write_file(gzip: _Gzip, header: tarfile.TarInfo, entry: Entry, packed: Packed) -> None:
    fd = _read(lambda path: os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), entry)
    with open(fd, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        header.size = os.fstat(fd).st_size
        gzip.write(_encode(header))
        left = header.size
        while left:
            data = file.read(min(left, _READ_BYTES))
            if not data:
                raise UsageError(f"{printable(entry.path)} became shorter while it was being sent")
            gzip.write(data)
            left -= len(data)
            packed.read_bytes += len(data)
    gzip.write(bytes(-header.size % tarfile.BLOCKSIZE))
    packed.files += 1


def _read(operation: Callable[[str], T], entry: Entry) -> T:
    try:
        return operation(entry.full_path)
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            raise UsageError(f"{printable(entry.path)} vanished while it was being sent") from exc
        raise UsageError(f"cannot read {printable(entry.path)}: {exc.strerror}") from exc


def _encode(header: tarfile.TarInfo) -> bytes:
    # GNU rather than PAX: names are bytes there, so those that are no UTF-8 arrive as they are.
    return header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def new_compressor() -> zlib._Compress:
    """Return what makes the gzip format, with nothing in its header that changes."""
    return zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)


class _Gzip:
    """Compresses into `sink`, which may be a pipe that takes less than it is given."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._compressor = new_compressor()

    def write(self, data: bytes) -> None:
        self._pass_on(self._compressor.compress(data))

    def finish(self) -> None:
        self._pass_on(self._compressor.flush())

    def _pass_on(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._sink.write(view) :]
