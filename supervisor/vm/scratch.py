"""A machine's scratch disk: a private copy of the image's template, without a name.

The file is never in any directory, or only for a moment. The kernel frees it with the last
descriptor, so it cannot be left behind: not by a bug here, and not by `kill -9`.

It lives below the data directory and not in the runtime directory, because that is often memory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from pathlib import Path

from supervisor.errors import HostError, ResourceExhausted

_FICLONE = 0x40049409
"""`_IOW(0x94, 9, int)`, linux/fs.h: share the blocks of another file, copied when written to."""
_COPY_BYTES = 1 << 30
_NO_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM}
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
_FULL = {errno.ENOSPC, errno.EDQUOT}


def make_scratch_sync(template: Path, directory: Path) -> int:
    """Return a descriptor of a nameless copy of `template`, as sparse as that is.

    Costs what the template's few written blocks cost, whatever its apparent size. The caller closes
    it. Raises HostError; ResourceExhausted if the disk is full.
    """
    try:
        source = os.open(template, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _copy_of(source, directory)
        finally:
            os.close(source)
    except OSError as exc:
        if exc.errno in _FULL:  # which the tenant is told
            raise ResourceExhausted(f"a scratch disk cannot be made: {exc.strerror}") from exc
        raise HostError(f"a scratch disk cannot be made in {directory}: {exc.strerror}") from exc


def _copy_of(source: int, directory: Path) -> int:
    target = _open_nameless(directory)
    try:
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError as exc:
            if exc.errno not in _NO_CLONE:
                raise
            _copy_extents(source, target)
    except BaseException:
        os.close(target)
        raise
    return target


def _open_nameless(directory: Path) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno not in _NO_TMPFILE:
            raise
    fd, name = tempfile.mkstemp(prefix="scratch-", dir=directory)
    Path(name).unlink()
    return fd


def _copy_extents(source: int, target: int) -> None:
    """Copy what the template has, leaving the holes."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        _copy_range(source, target, start, end)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    os.lseek(target, start, os.SEEK_SET)
    while start < end:
        copied = os.sendfile(target, source, start, min(end - start, _COPY_BYTES))
        if copied == 0:
            raise OSError(errno.EIO, "the template is shorter than it said")
        start += copied
