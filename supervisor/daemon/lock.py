"""One daemon for each data directory, and for each runtime directory.

Two that shared the latter would take each other's machines for leftovers.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from supervisor.config import Settings
from supervisor.errors import ConfigError

_DIRECTORY_MODE = 0o750
_TRIES = 20
_BETWEEN_TRIES_SECONDS = 0.1


def prepare_directories(settings: Settings) -> None:
    """Make the daemon's directories. Raises ConfigError if one cannot be made or written."""
    data, runtime = settings.data_dir, settings.runtime_dir
    for path in (data, data / "builds", data / "registry", runtime, runtime / "machines"):
        try:
            path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"the directory {path} cannot be made: {exc.strerror}") from exc
        if not os.access(path, os.W_OK | os.X_OK):
            if os.statvfs(path).f_flag & os.ST_RDONLY:
                raise ConfigError(f"the directory {path} is on a read-only file system")
            raise ConfigError(f"the directory {path} is not writable for uid {os.getuid()}")


@asynccontextmanager
async def hold_lock(directory: Path, setting: str) -> AsyncIterator[None]:
    """Hold a directory's lock during the block; the kernel frees it if the daemon dies.

    A process that a killed daemon was about to start shares the lock until it becomes another
    program, so one that is held is asked for again for two seconds.

    Raises ConfigError, naming the other daemon's process and the setting, if it is taken; also if
    it cannot be opened.
    """
    path = directory / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as exc:
        raise ConfigError(
            f"the lock {path} cannot be opened: {exc.strerror}; mend that or set {setting}"
        ) from exc
    try:
        if not await _take(fd):
            owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"another daemon (process {owner}) uses {directory}; stop it or set {setting}"
            )
        # Only for the sentence above: a daemon must come up on a full disk.
        with suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


async def _take(fd: int) -> bool:
    for _ in range(_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        await trio.sleep(_BETWEEN_TRIES_SECONDS)
    return False
