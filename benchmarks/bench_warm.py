"""A build in a machine that waits: from submit to the first step, and to ready.

The first step has begun when a follower of the build has received a step that says when it was
started. The peer is a bare build (bare.py): a buildctl run in a machine that is up, with BuildKit
ready and the source in place, from the word `go` to the first line that says so. Its machine has
waited as long as ours.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.bare import Bare
from benchmarks.bench_builds import EXAMPLE
from benchmarks.progress import tell
from benchmarks.results import Row, Size, at_most
from tests.e2e.daemon import FINAL, Daemon

_IDLE_SECONDS = 120.0
"""For each machine: the pool boots one after the other."""
_SETTLE_SECONDS = 5.0


def run(work: Path, size: Size) -> list[Row]:
    """Measure."""
    times = size.pick(3, 1)
    daemon = Daemon(work, {"POOL_SIZE": "1"})
    daemon.start()
    first, ready, bare_first, bare_done = [], [], [], []
    try:
        bare = Bare(daemon, work, EXAMPLE)
        for number in range(times):
            tell(f"warm: bare and ours, round {number + 1} of {times}")
            wait_idle(daemon)
            floor = bare.warm(_SETTLE_SECONDS)
            bare_first.append(floor.first_step)
            bare_done.append(floor.done)
            wait_idle(daemon)
            time.sleep(_SETTLE_SECONDS)
            started, ended = _build(daemon)
            first.append(started)
            ready.append(ended)
    finally:
        daemon.stop()
    return [
        at_most("warm build, submit to first step", first, "s", 0.4),
        at_most("the same, against a bare buildctl", first, "s", 1.15, bare_first),
        at_most("warm build, submit to ready", ready, "s", 1.15, bare_done),
    ]


def _build(daemon: Daemon) -> tuple[float, float]:
    """Return the seconds from submit to the first step that has started, and to ready."""
    began = time.monotonic()
    build = daemon.submit(EXAMPLE)["id"]
    first_step = 0.0
    for event in daemon.follow(build):
        if not first_step and "started_at" in event.get("step", {}):
            first_step = time.monotonic() - began
        if (status := event.get("status")) in FINAL:
            if status != "ready" or not first_step:
                raise RuntimeError(f"the build is {status}:\n{daemon.log(build)}")
            break
    return first_step, time.monotonic() - began


def wait_idle(daemon: Daemon, count: int = 1) -> list[int]:
    """Wait until so many machines of the pool wait for a build; return their VMMs' processes."""
    deadline = time.monotonic() + _IDLE_SECONDS * count
    with daemon.client(permissions=["build:admin"]) as client:
        while True:
            machines = client.get("/machines").json()
            idle = [machine["pid"] for machine in machines if machine["state"] == "idle"]
            if len(idle) >= count:
                return idle
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {count} machines became idle: {machines}")
            time.sleep(0.1)
