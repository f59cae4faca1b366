"""What a daemon is made of: memory, descriptors, threads, tasks, children, and rows.

It tells by itself when asked; all but its tasks and objects can be seen from outside as well.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import trio
import trio.lowlevel


def report_on_request(path: Path) -> None:
    """Write the vitals to `path` at each SIGUSR1, in one step."""

    def write(*_: object) -> None:
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(_measure()))
        temporary.replace(path)

    signal.signal(signal.SIGUSR1, write)


def measure(pid: int) -> dict[str, int]:
    """Return what can be seen of a process from outside."""
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    children = [path.read_text().split() for path in proc.glob("task/*/children")]
    return {
        "rss_kib": int(status["VmRSS"].split()[0]),
        "anonymous_kib": int(status["RssAnon"].split()[0]),
        "descriptors": sum(1 for _ in (proc / "fd").iterdir()),
        "threads": int(status["Threads"]),
        "children": sum(map(len, children)),
    }


def count_rows(database: Path) -> dict[str, int]:
    """Return how many rows each table of a daemon's database has."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608
            for (name,) in names
        }


def _measure() -> dict[str, int]:
    gc.collect()
    tasks = trio.lowlevel.current_statistics().tasks_living
    return {**measure(os.getpid()), "tasks": tasks, "objects": len(gc.get_objects())}
