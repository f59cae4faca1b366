"""Builds in cold machines: from submit to ready, against a bare build that does the same by hand.

A bare build (bare.py) boots the same VMM, runs the same buildctl and pushes to the same registry.
Bare and ours take turns, so that both have the same neighbours. A build with its tenant's cache has
no bare peer: it is held against the bare build without one.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.bare import Bare
from benchmarks.progress import tell
from benchmarks.results import Row, Size, at_most
from tests.e2e.daemon import REPOSITORY_ROOT, Daemon

EXAMPLE = REPOSITORY_ROOT / "examples" / "hello"


def run(work: Path, size: Size) -> list[Row]:
    """Measure."""
    times = size.pick(3, 1)
    daemon = Daemon(work, {"POOL_SIZE": "0"})
    daemon.start()
    try:
        tell("builds: two to warm up")
        bare = Bare(daemon, work, EXAMPLE)
        _build(daemon)  # whoever is first reads the image from the disk
        _build(daemon, cache_scope="bench")
        cold, cached, floor = [], [], []
        for number in range(times):
            tell(f"builds: bare, cold and with the cache, round {number + 1} of {times}")
            floor.append(bare.cold().done)
            cold.append(_build(daemon))
            cached.append(_build(daemon, cache_scope="bench"))
    finally:
        daemon.stop()
    return [
        at_most("cold build, submit to ready", cold, "s", 1.10, floor),
        Row("with the tenant's cache", sorted(cached)[times // 2], "s", sorted(floor)[times // 2]),
    ]


def _build(daemon: Daemon, **fields: Any) -> float:
    began = time.monotonic()
    daemon.build_image(EXAMPLE, **fields)
    return time.monotonic() - began
