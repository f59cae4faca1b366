"""The end of a build that is cancelled while a step runs: from the answer until nothing is left.

Nothing of its machine: no process, no socket, no directory. Others run meanwhile.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.progress import tell
from benchmarks.results import Row, Size, at_most, quantile
from tests.e2e.daemon import Daemon

_AT_ONCE = 4
_SLEEPER = {"Dockerfile": "FROM busybox\nRUN echo begun; sleep 600\n"}
_POLL_SECONDS = 0.005


def run(work: Path, size: Size) -> list[Row]:
    """Measure."""
    rounds = size.pick(4, 1)
    daemon = Daemon(work, {"POOL_SIZE": "0", "MAX_CONCURRENT_SOURCE_BUILDS": str(_AT_ONCE)})
    daemon.start()
    try:
        gone: list[float] = []
        for number in range(rounds):
            tell(f"cancel: {_AT_ONCE} builds, round {number + 1} of {rounds}")
            gone += _round(daemon)
    finally:
        daemon.stop()
    return [
        at_most(f"cancel, answer to machine gone, p99 of {len(gone)}",
                [quantile(gone, 0.99)], "s", 1),
        Row("its median", quantile(gone, 0.5), "s"),
    ]  # fmt: skip


def _round(daemon: Daemon) -> list[float]:
    running = [daemon.submit(_SLEEPER)["id"] for _ in range(_AT_ONCE)]
    for build in running:
        daemon.wait_for(build, "begun")
    return [_cancel(daemon, build) for build in running]


def _cancel(daemon: Daemon, build: str) -> float:
    with daemon.client() as client:
        client.delete(f"/builds/{build}").raise_for_status()
    answered = time.monotonic()
    while any(build in left for left in daemon.leftovers()):
        time.sleep(_POLL_SECONDS)
    return time.monotonic() - answered
