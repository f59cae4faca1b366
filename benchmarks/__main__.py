"""Run benchmarks: python -m benchmarks [--quick] [NAME…]; without names, all of them.

What goes on is told on stderr. Each benchmark's table is on stdout when it has ended, and all of
them in one at the end; build/bench/NAME.json has the same. One that fails does not end the others,
and makes the exit status 1. With --quick each does as little as it can, and the numbers mean
nothing: that is for finding out whether all of them run.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from loguru import logger

from benchmarks.progress import tell
from benchmarks.results import Result, Row, Size, table, write_json

SECONDS = {
    "registry": 200,
    "guest_link": 80,
    "followers": 40,
    "stored": 80,
    "actors": 40,
    "daemon": 240,
    "builds": 130,
    "warm": 110,
    "together": 480,
    "cancel": 170,
}
"""About how long each takes on two processors that emulate, with nothing else to do."""
NAMES = tuple(SECONDS)
MACHINES = ("guest_link", "daemon", "builds", "warm", "together", "cancel")
"""Those that boot real machines."""
RESULTS = Path(__file__).parents[1] / "build" / "bench"
QUICK = "--quick"


def main(arguments: list[str]) -> int:
    """Run what was asked for; return the exit status. A missed aim is no failure."""
    size = Size.TINY if QUICK in arguments else Size.FULL
    asked = [name for name in arguments if name != QUICK]
    unknown = [name for name in asked if name not in NAMES]
    if unknown:
        print(f"there is no benchmark {unknown[0]}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    names = asked or NAMES
    directory = RESULTS if size is Size.FULL else RESULTS / "quick"
    if size is Size.FULL:
        tell(f"{', '.join(names)}: about {sum(SECONDS[name] for name in names) / 60:.0f} minutes")
    results, failed = [], []
    for number, name in enumerate(names, start=1):
        tell(f"{name} ({number} of {len(names)}), load {os.getloadavg()[0]:.2f}")
        try:
            result = run(name, size)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        tell(f"{name} took {result.seconds:.0f} s, load {result.load_after:.2f}")
        print(f"== {name}\n{table(result.rows)}", flush=True)
        write_json(directory / f"{name}.json", result)
        results.append(result)
    if len(results) > 1:
        print(f"\n== all\n{table([row for result in results for row in _named(result)])}")
    if failed:
        print(f"failed: {', '.join(failed)}; why is told above", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, size: Size) -> Result:
    """Run one benchmark in a directory that is gone afterwards."""
    module = importlib.import_module(f"benchmarks.bench_{name}")
    measure: Callable[[Path, Size], list[Row]] = module.run
    work = Path(tempfile.mkdtemp(prefix="hb-"))  # short: sockets lie in it
    logger.disable("supervisor")  # a terminal would be what is measured
    load_before, began = os.getloadavg()[0], time.monotonic()
    try:
        rows = measure(work, size)
        return Result(name, rows, time.monotonic() - began, load_before, os.getloadavg()[0])
    finally:
        logger.enable("supervisor")
        shutil.rmtree(work, ignore_errors=True)


def _named(result: Result) -> list[Row]:
    """Return the rows, with the benchmark's name in each; and what load there was, in the first."""
    load = f" (load {result.load_before:.2f} to {result.load_after:.2f})"
    return [
        replace(row, what=f"{result.name}: {row.what}{'' if number else load}")
        for number, row in enumerate(result.rows)
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
