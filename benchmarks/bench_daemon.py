"""A whole daemon that does nothing: its start with many builds stored, its memory, its wakeups.

It has started when it tells the service manager so. The floor is the same daemon's start on an
empty directory; the accelerator is probed before either. The pool is off, but for the last rows: a
daemon whose two machines wait for builds.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import trio

from benchmarks.bench_stored import fill
from benchmarks.bench_warm import wait_idle
from benchmarks.progress import tell
from benchmarks.results import Row, Size, at_most
from benchmarks.servers import rss_bytes
from tests.e2e.daemon import START_SECONDS, Daemon

_MIB = 1 << 20
_SETTLE_SECONDS = 5.0
_WATCH_SECONDS = 20.0
_POOL_SIZE = 2
_SETTINGS = {"POOL_SIZE": "0", "BUILD_RETENTION_DAYS": "36500"}


def run(work: Path, size: Size) -> list[Row]:
    """Measure."""
    count, times = size.pick(100_000, 100), size.pick(5, 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(work / "notify"))
        notices.settimeout(START_SECONDS)
        settings = {**_SETTINGS, "NOTIFY_SOCKET": str(work / "notify")}
        daemon = Daemon(work, settings)
        tell("daemon: starts with none")
        _start_and_stop(daemon, notices)  # probes the accelerator, and imports the seeds
        floor = [_start_and_stop(daemon, notices) for _ in range(times)]
        tell(f"daemon: {count} builds are stored")
        for build in trio.run(fill, daemon.data_dir, count):
            (daemon.data_dir / "builds" / build).mkdir()
        tell(f"daemon: starts with {count}")
        _start_and_stop(daemon, notices)
        full = [_start_and_stop(daemon, notices) for _ in range(times)]
        tell("daemon: idle")
        with _running(daemon, notices) as pid:
            wakeups = _count_wakeups(pid)
            memory = rss_bytes(pid) / _MIB
        tell(f"daemon: idle, with a pool of {_POOL_SIZE}")
        pooled = Daemon(work, {**settings, "POOL_SIZE": str(_POOL_SIZE)})
        with _running(pooled, notices) as pid:
            machines = wait_idle(pooled, _POOL_SIZE)
            time.sleep(_SETTLE_SECONDS)  # the guest, too
            before = sum(map(_processor_seconds, machines))
            pool_wakeups = _count_wakeups(pid)
            spent = sum(map(_processor_seconds, machines)) - before
    share = 100 * spent / _POOL_SIZE / (_SETTLE_SECONDS + _WATCH_SECONDS)
    return [
        at_most(f"start with {count} builds", full, "s", 2),
        Row("start with none", sorted(floor)[times // 2], "s"),
        at_most("memory of an idle daemon", [memory], "MiB", 100),
        at_most("wakeups of an idle daemon", [wakeups], "1/s", 2),
        Row(f"its wakeups with a pool of {_POOL_SIZE}", pool_wakeups, "1/s"),
        Row("processor time of each machine that waits", share, "%"),
    ]


def _start_and_stop(daemon: Daemon, notices: socket.socket) -> float:
    seconds = _start(daemon, notices)
    daemon.stop()
    return seconds


def _start(daemon: Daemon, notices: socket.socket) -> float:
    """Start the daemon; return the seconds until it said that it is ready."""
    began = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        ready = threads.submit(_wait_ready, notices)
        daemon.start()
        return ready.result() - began


def _wait_ready(notices: socket.socket) -> float:
    while b"READY=1" not in notices.recv(4096):
        pass
    return time.monotonic()


@contextmanager
def _running(daemon: Daemon, notices: socket.socket) -> Iterator[int]:
    _start(daemon, notices)
    assert daemon.process is not None
    try:
        yield daemon.process.pid
    finally:
        daemon.stop()


def _count_wakeups(pid: int) -> float:
    """Return how often a process wakes up in a second, after it has settled."""
    time.sleep(_SETTLE_SECONDS)
    before = _wakeups(pid)
    time.sleep(_WATCH_SECONDS)
    after = _wakeups(pid)
    # A thread that has ended meanwhile did not wake up for long.
    return sum(after[task] - before.get(task, 0) for task in after) / _WATCH_SECONDS


def _processor_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _wakeups(pid: int) -> dict[str, int]:
    """Return how often each thread of a process has gone to sleep: it woke up as often."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                found[task.name] = int(line.split()[1])
    return found
