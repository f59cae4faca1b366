"""The machine's health: what the kernel knows of it, and how to stay able to act.

A build may use up memory, processes and processor time. The agent has to be able to say so, so it
is never killed for memory, keeps its own pages, and runs before anything else that wants to run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import trio

DISK_FULL_BYTES = 64 << 20
"""Less free than this counts as full: a failed write need not fill the rest of the disk."""
DISK_FULL_INODES = 1_000
DISK_WATCH_SECONDS = 2.0

MEMORY_WATCH_SECONDS = 0.5
MEMORY_FLOOR_BYTES = 32 << 20
MEMORY_FLOOR_FRACTION = 0.03
"""With less than this available, the kernel does not run out of memory yet: it goes round and round
dropping pages of programs and reading them again, for minutes in which nothing else happens."""

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def stay_able() -> None:
    """Arrange for this process to go on whatever a build does. Needs root; for the main thread."""
    Path("/proc/self/oom_score_adj").write_text("-1000", encoding="ascii")
    # Only what is in use is kept: reading in all that is mapped would take longer than the start.
    ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
    # Children and threads start as ordinary ones.
    policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
    os.sched_setscheduler(0, policy, os.sched_param(1))


def oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since it started."""
    match = re.search(r"^oom_kill (\d+)$", _read("/proc/vmstat"), re.MULTILINE)
    return int(match[1]) if match else 0


def is_disk_full(path: str) -> bool:
    """Say whether the file system of `path` is full, or as good as."""
    about = os.statvfs(path)
    has_no_inodes = about.f_files > 0 and about.f_favail < DISK_FULL_INODES
    return about.f_bavail * about.f_frsize < DISK_FULL_BYTES or has_no_inodes


def is_memory_low() -> bool:
    """Say whether so little memory is left that the machine would soon only be busy with itself."""
    fields = dict(
        re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", _read("/proc/meminfo"), re.M)
    )
    if len(fields) < 2:
        return False
    total, available = int(fields["MemTotal"]) << 10, int(fields["MemAvailable"]) << 10
    return available < max(MEMORY_FLOOR_BYTES, total * MEMORY_FLOOR_FRACTION)


class DiskWatch:
    """Remembers whether a disk was ever full: afterwards BuildKit has tidied up."""

    def __init__(self, path: str) -> None:
        self.was_full = False
        self._path = path

    def look(self) -> None:
        """Look now."""
        self.was_full = self.was_full or is_disk_full(self._path)

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            self.look()
            await trio.sleep(DISK_WATCH_SECONDS)


class MemoryWatch:
    """Does the kernel's work of killing for memory, before the machine is too busy to go on.

    It takes the process that the kernel would take, so that the build fails like any other whose
    process was killed.
    """

    def __init__(self) -> None:
        self._kills = 0
        self._before = oom_kills()

    @property
    def kills(self) -> int:
        """How many processes were killed for memory since this was made, by whomever."""
        return self._kills + oom_kills() - self._before

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await trio.sleep(MEMORY_WATCH_SECONDS)
            if is_memory_low() and (pid := worst_process()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self._kills += 1


def worst_process() -> int | None:
    """Return the process that the kernel would kill first, or None if there is none to kill."""
    score, pid = max(_scores(), default=(0, 0))
    return pid if score > 0 else None


def _scores() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):  # noqa: PTH208 - names are all that is wanted
        if name.isdigit() and name != "1":
            with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
                if int(_read(f"/proc/{name}/oom_score_adj")) > -1000:
                    yield int(_read(f"/proc/{name}/oom_score")), int(name)


def _read(path: str) -> str:
    return Path(path).read_text(encoding="ascii")
