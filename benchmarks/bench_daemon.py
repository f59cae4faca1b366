"""A whole daemon that does nothing: its start with many builds stored, its memory, its wakeups.

The floor of the start is the same daemon's on an empty directory; the accelerator is probed before
either. The pool is off: its machines are what they are.
"""

from __future__ import annotations

import time
from pathlib import Path

import trio

from benchmarks.bench_stored import fill
from benchmarks.results import Row, Size, at_most
from benchmarks.servers import rss_bytes
from tests.e2e.daemon import Daemon

_MIB = 1 << 20
_SETTLE_SECONDS = 5.0
_WATCH_SECONDS = 20.0
_SETTINGS = {"POOL_SIZE": "0", "BUILD_RETENTION_DAYS": "36500"}


def run(work: Path, size: Size) -> list[Row]:
    """Measure."""
    count = size.pick(100_000, 100)
    daemon = Daemon(work, _SETTINGS)
    _start(daemon)  # probes the accelerator, and imports the seeds
    daemon.stop()
    floor = [_start_and_stop(daemon) for _ in range(3)]
    for build in trio.run(fill, daemon.data_dir, count):
        (daemon.data_dir / "builds" / build / "logs").mkdir(parents=True)
    _start_and_stop(daemon)
    full = [_start_and_stop(daemon) for _ in range(3)]
    _start(daemon)
    try:
        assert daemon.process is not None
        time.sleep(_SETTLE_SECONDS)
        pid = daemon.process.pid
        before = _wakeups(pid)
        time.sleep(_WATCH_SECONDS)
        after = _wakeups(pid)
        # A thread that has ended meanwhile did not wake up for long.
        wakeups = sum(after[task] - before.get(task, 0) for task in after) / _WATCH_SECONDS
        memory = rss_bytes(pid) / _MIB
    finally:
        daemon.stop()
    return [
        at_most(f"start with {count} builds", full, "s", 2),
        Row("start with none", sorted(floor)[1], "s"),
        at_most("memory of an idle daemon", [memory], "MiB", 100),
        at_most("wakeups of an idle daemon", [wakeups], "1/s", 2),
    ]


def _start_and_stop(daemon: Daemon) -> float:
    seconds = _start(daemon)
    daemon.stop()
    return seconds


def _start(daemon: Daemon) -> float:
    began = time.monotonic()
    daemon.start()
    return time.monotonic() - began


def _wakeups(pid: int) -> dict[str, int]:
    """Return how often each thread of a process has gone to sleep: it woke up as often."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                found[task.name] = int(line.split()[1])
    return found
