"""Damaged files are moved aside: nobody is served them, and an operator can look at them.

    registry/corrupt/<algorithm>-<hex>

The latest few are kept. Nothing of the daemon reads them again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from supervisor.model.registry import FileStamp
from supervisor.registry.stamps import stamp_of
from supervisor.runtime.logs import log

MOST_FILES = 16
MOST_BYTES = 4 << 30
"""Of all files there but the latest, which may be larger."""


def set_aside_sync(path: Path, stamp: FileStamp, target: Path) -> bool:
    """Move a damaged file to `target`; False if it is not there any more. Raises OSError.

    Its stamp says which file is meant: one that has taken its place stays. What was moved aside
    long ago is removed.
    """
    try:
        if stamp_of(path.stat()) != stamp:
            return False
        target.parent.mkdir(mode=0o750, exist_ok=True)
        path.rename(target)
    except FileNotFoundError:
        return False
    try:
        _remove_oldest_sync(target.parent)
    except OSError as exc:  # the file is moved all the same
        log.warning("registry.corrupt_not_removed", directory=str(target.parent), why=exc.strerror)
    return True


def _remove_oldest_sync(directory: Path) -> None:
    with os.scandir(directory) as entries:
        found = [(entry.stat(follow_symlinks=False), Path(entry.path)) for entry in entries]
    # A rename is a change, so this is the time at which it was moved here.
    found.sort(key=lambda item: item[0].st_ctime_ns, reverse=True)
    total = 0
    for number, (status, path) in enumerate(found):
        total += status.st_size
        if number and (number >= MOST_FILES or total > MOST_BYTES):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
