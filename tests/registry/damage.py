"""Damaging files as disks, programs and people do, and hearing what the daemon says of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.runtime.logs import log

if TYPE_CHECKING:
    from loguru import Record  # there for type checkers only


def flip(path: Path) -> bytes:
    """Turn one byte of a file into another one; return what it holds then."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    status = path.stat()
    path.write_bytes(content)
    # The clock of a file system is coarse: a test may come to this within one tick of the push.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    return bytes(content)


def restore(path: Path, content: bytes) -> None:
    """Put a file where it was, as from a backup: the same bytes, but not the same file."""
    copy = path.with_name("from-a-backup")
    copy.write_bytes(content)
    if path.exists():
        shutil.copystat(path, copy)
    copy.replace(path)


def write(path: Path, content: bytes) -> None:
    """Write into a file where it is, as `cp` does."""
    path.write_bytes(content)


def is_there(path: Path) -> bool:
    """Say whether there is a file."""
    return path.exists()


def content_of(path: Path | str) -> bytes:
    """Return what a file holds."""
    return Path(path).read_bytes()


@contextmanager
def hearing(level: str = "ERROR") -> Iterator[list[Record]]:
    """Collect what is logged in the block."""
    found: list[Record] = []
    handler = log.add(lambda message: found.append(message.record), level=level)
    try:
        yield found
    finally:
        log.remove(handler)
