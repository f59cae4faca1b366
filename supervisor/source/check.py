"""Judge an uploaded source by reading it once, in constant memory and without unpacking it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import trio

from supervisor.runtime.threads import Threads, run_in_thread
from supervisor.source.gunzip import INPUT_BYTES, gunzip
from supervisor.source.tar import ArchiveFacts, ArchiveLimits, TarReader


async def check_source(
    path: Path, limits: ArchiveLimits, dockerfile_path: str, threads: Threads
) -> ArchiveFacts:
    """Return what the gzip-compressed tar archive at `path` holds.

    Raises InvalidSource or PayloadTooLarge. A cancellation is noticed within a piece of the stream.
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
    reader = TarReader(limits, dockerfile_path, path.stat().st_size)
    for content in gunzip(_pieces(path, check_cancelled)):
        check_cancelled()
        reader.feed(content)
    return reader.finish()


def _pieces(path: Path, check_cancelled: Callable[[], None]) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while piece := file.read(INPUT_BYTES):
            check_cancelled()
            yield piece
