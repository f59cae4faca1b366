"""The last of a disk is the daemon's: pushes stop before it is full.

What shares the disk with the registry must go on when a tenant or a hostile guest pushes without
end: the database, the events of builds, sources.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

RESERVE_BYTES = 512 << 20
"""What no push takes; of a small disk, a twentieth."""
_SMALLEST_SHARE = 20


def require_room_sync(where: int | Path, length: int) -> None:
    """Raise OSError (ENOSPC) if `length` more bytes would leave less than the reserve.

    `where` is a file, open or by its path, on the disk in question.
    """
    disk = os.statvfs(where)
    reserve = min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // _SMALLEST_SHARE)
    if disk.f_bavail * disk.f_frsize - length < reserve:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
