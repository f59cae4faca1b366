"""Finding and ending what the machines of a killed daemon left behind.

The kernel kills the children of a daemon that dies, and scratch disks have no names. What can
remain are directories with sockets, and, if the daemon died while it was starting one, a process.
Such a process is known by its user, its program and the machines' directory in its command line.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import trio

from supervisor.runtime.files import remove_tree_sync
from supervisor.runtime.logs import log
from supervisor.vm.argv import QEMU, VSOCK_DEVICE
from supervisor.vm.sandbox import MACHINE_UID

PROC = Path("/proc")
END_SECONDS = 5.0
"""How long a killed process may take to go."""

_PROGRAMS = {QEMU, VSOCK_DEVICE, "bwrap", "prlimit", "setpriv", "sh", "unshare"}
"""A machine's process is one of the latter until it has become what it was started for; `bwrap`
stays, as its parent."""


async def sweep_machines(machines: Path) -> int:
    """End every process and remove every directory of machines below `machines`.

    The caller owns that directory alone. Returns how many machines there were. Idempotent.
    """
    pidfds = list(open_leftovers(machines))
    try:
        for pidfd in pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with trio.move_on_after(END_SECONDS):
            for pidfd in pidfds:
                await trio.lowlevel.wait_readable(pidfd)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
    return remove_directories_sync(machines)


def remove_directories_sync(machines: Path) -> int:
    """Remove the directories of machines, each a handful of names; return how many there were."""
    directories = sorted(machines.iterdir()) if machines.is_dir() else []
    for directory in directories:
        remove_tree_sync(directory)
        log.bind(machine_id=directory.name).warning("machine.swept")
    return len(directories)


def open_leftovers(machines: Path) -> Iterator[int]:
    """Yield a pidfd of each process of a machine below `machines`; the caller closes them.

    The descriptor is opened before the look at the process, so it cannot come to mean another one.
    """
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            pidfd = os.pidfd_open(int(entry.name))
        except OSError:
            continue  # gone, or a thread
        if is_leftover(entry, machines):
            log.bind(pid=int(entry.name)).warning("machine.process_left")
            yield pidfd
        else:
            os.close(pidfd)


def is_leftover(entry: Path, machines: Path) -> bool:
    """Say whether the process at `entry` (`/proc/<pid>`) belongs to a machine below `machines`."""
    try:
        owner, us = entry.stat().st_uid, os.getuid()
        if owner != us and not (us == 0 and owner == MACHINE_UID):
            return False
        argv = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    prefix = os.fsencode(machines) + b"/"
    names_us = any(word.startswith(prefix) for word in argv)
    return names_us and Path(os.fsdecode(argv[0])).name in _PROGRAMS
