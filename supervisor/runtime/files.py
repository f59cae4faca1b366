"""Durable file operations. All of them block: call them in a thread, or at start-up."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path


def write_atomically_sync(
    path: Path, data: bytes, *, mode: int = 0o640, is_sole_writer: bool = False
) -> None:
    """Replace `path` by `data`, durably: after a crash it has the old content or the new, whole.

    A crash may leave a temporary file. `is_sole_writer` promises that nobody else writes `path` at
    the same time; then there is only one such file, and the next write makes use of it.
    """
    infix = "" if is_sole_writer else f".{os.getpid()}"
    temporary = path.with_name(f".{path.name}{infix}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123 - Path cannot open a descriptor
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory_sync(path.parent)


def fsync_directory_sync(path: Path) -> None:
    """Make the names in a directory durable: creations, renames and removals."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree_sync(path: Path) -> None:
    """Remove a directory and all below it; already gone is fine."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
