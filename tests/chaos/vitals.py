"""What a process is made of, told by itself when asked: memory, descriptors, threads, tasks."""

from __future__ import annotations

import gc
import json
import signal
import threading
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


def _measure() -> dict[str, int]:
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "rss_kib": int(status["VmRSS"].split()[0]),
        "anonymous_kib": int(status["RssAnon"].split()[0]),
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": threading.active_count(),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "children": len(_children()),
        "objects": len(gc.get_objects()),
    }


def _children() -> list[str]:
    return [
        pid
        for path in Path("/proc/self/task").glob("*/children")
        for pid in path.read_text().split()
    ]
