"""A place for a host: short paths for its sockets, and in memory if there is such a thing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = Path("/dev/shm")


@contextmanager
def place(*, in_memory: bool = True) -> Iterator[Path]:
    """Give an empty directory, which goes at the end of the block."""
    parent = _MEMORY if in_memory and _MEMORY.is_dir() else None
    directory = Path(tempfile.mkdtemp(prefix="hm-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
