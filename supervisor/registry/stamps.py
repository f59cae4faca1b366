"""Stamps of files: what tells without reading whether a file is still the one that was verified.

Whatever goes through the file system and changes the bytes changes the stamp, and so does much that
does not (another owner, another link, a copy from a backup): then the bytes are read. What the disk
itself turns into something else leaves the stamp as it was.
"""

from __future__ import annotations

import os

from supervisor.model.registry import FileStamp
from supervisor.runtime.clock import wall_clock

YOUNG_SECONDS = 10.0
"""Who copies a file writes to it more often than that."""


def stamp_of(found: os.stat_result) -> FileStamp:
    """Return the stamp of a file."""
    # The time of the last change is nobody's to set; the other three tell files of one time apart,
    # where clocks are coarse or set back.
    return FileStamp(
        f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}",
    )


def has_same_content(stamp: FileStamp, other: FileStamp) -> bool:
    """Say whether two stamps of a file differ at most by what a link or another owner changes."""
    return stamp.rpartition("-")[0] == other.rpartition("-")[0]


def is_young(stamp: FileStamp) -> bool:
    """Say whether the file was changed a moment ago, so that somebody may be writing to it."""
    changed_at = int(stamp.rpartition("-")[2]) / 1e9
    return 0 <= wall_clock() - changed_at < YOUNG_SECONDS
