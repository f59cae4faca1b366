"""Eight builds at once on this machine: all of them, against eight bare builds at once.

Bare, ours, ours, bare: what the machine has else to do changes slowly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.bare import Bare
from benchmarks.bench_builds import EXAMPLE
from benchmarks.progress import tell
from benchmarks.results import Row, Size, at_most
from tests.e2e.daemon import Daemon


def run(work: Path, size: Size) -> list[Row]:
    """Measure."""
    return measure(work, size.pick(8, 2))


def measure(work: Path, count: int) -> list[Row]:
    """Measure with so many at once."""
    daemon = Daemon(work, {"POOL_SIZE": "0", "MAX_CONCURRENT_SOURCE_BUILDS": str(count)})
    daemon.start()
    try:
        bare = Bare(daemon, work, EXAMPLE)
        tell("together: one to warm up")
        bare.cold()  # whoever is first reads the image from the disk
        floor: list[float] = []
        ours: list[float] = []
        for name, build, taken in (
            ("bare", bare.cold, floor),
            ("ours", partial(daemon.build_image, EXAMPLE), ours),
            ("ours", partial(daemon.build_image, EXAMPLE), ours),
            ("bare", bare.cold, floor),
        ):
            tell(f"together: {count} at once, {name}")
            taken.append(_at_once(count, build))
    finally:
        daemon.stop()
    return [at_most(f"{count} cold builds at once, all of them", ours, "s", 1.05, floor)]


def _at_once(count: int, build: Callable[[], object]) -> float:
    """Return the seconds until all have ended. Raises what the first of them raises."""
    began = time.monotonic()
    with ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(build) for _ in range(count)]:
            done.result()
    return time.monotonic() - began
