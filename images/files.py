"""Whole files: digests of them, and writing them so that nobody ever sees half of one."""

import errno
import hashlib
import os
from pathlib import Path

BLOCK_BYTES = 4096


def digest(path: Path) -> str:
    """The sha256 of one file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sparse_digest(path: Path) -> str:
    """The sha256 over the blocks that are not zero, each with its offset.

    For disks of which nearly all is a hole: their plain digest takes a minute of hashing zeros,
    and this one does not depend on which of the zeros are holes.
    """
    total = hashlib.sha256()
    with path.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        position = 0
        while position < end:
            try:
                position = os.lseek(stream.fileno(), position, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno != errno.ENXIO:  # no data from here on
                    raise
                break
            hole = os.lseek(stream.fileno(), position, os.SEEK_HOLE)
            while position < hole:
                block = os.pread(stream.fileno(), BLOCK_BYTES, position)
                if any(block):
                    total.update(b"%d\0%b" % (position, block))
                position += BLOCK_BYTES
    return total.hexdigest()


def write(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_bytes(data)
    temporary.replace(path)
