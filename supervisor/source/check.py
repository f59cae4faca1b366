"""Judge an uploaded source by reading it once, in constant memory and without unpacking it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

import trio

from supervisor.errors import HostError
from supervisor.runtime.threads import Threads, run_in_thread
from supervisor.source.gunzip import INPUT_BYTES, gunzip
from supervisor.source.tar import ArchiveFacts, ArchiveLimits, TarReader


async def check_source(
    path: Path, limits: ArchiveLimits, dockerfile_path: str, threads: Threads
) -> ArchiveFacts:
    """Return what the gzip-compressed tar archive at `path` holds.

    Raises InvalidSource, PayloadTooLarge, and HostError if it cannot be read. A cancellation is
    noticed within a piece of the stream.
    """
    check = partial(
        check_source_sync, path, limits, dockerfile_path, trio.from_thread.check_cancelled
    )
    return await run_in_thread(threads.hashing, check)


def check_source_sync(
    path: Path,
    limits: ArchiveLimits,
    dockerfile_path: str,
    check_cancelled: Callable[[], None] = lambda: None,
) -> ArchiveFacts:
    """Do the same in the calling thread; `check_cancelled` is called for every piece."""
    try:
        with path.open("rb", buffering=0) as file:
            reader = TarReader(limits, dockerfile_path, os.fstat(file.fileno()).st_size)
            for content in gunzip(_pieces(file, check_cancelled)):
                check_cancelled()
                reader.feed(content)
    except OSError as exc:
        raise HostError(f"the upload cannot be read: {exc.strerror}") from exc
    return reader.finish()


def _pieces(file: IO[bytes], check_cancelled: Callable[[], None]) -> Iterator[bytes]:
    while piece := file.read(INPUT_BYTES):
        check_cancelled()
        yield piece
