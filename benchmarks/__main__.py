"""Run benchmarks: python -m benchmarks [NAME…]; without names, all of them.

Results go to the terminal as a table, and to build/bench/NAME.json.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from loguru import logger

from benchmarks.results import Row, Size, table, write_json

NAMES = (
    "registry",
    "guest_link",
    "followers",
    "stored",
    "actors",
    "daemon",
    "builds",
    "warm",
    "together",
    "cancel",
)
MACHINES = ("guest_link", "daemon", "builds", "warm", "together", "cancel")
"""Those that boot real machines."""
RESULTS = Path(__file__).parents[1] / "build" / "bench"


def main(arguments: list[str]) -> int:
    """Run what was asked for; return the exit status. A missed aim is no failure."""
    unknown = [name for name in arguments if name not in NAMES]
    if unknown:
        print(f"there is no benchmark {unknown[0]}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in arguments or NAMES:
        print(f"== {name}", flush=True)
        rows = run(name, Size.FULL)
        print(table(rows), flush=True)
        write_json(RESULTS / f"{name}.json", name, rows)
    return 0


def run(name: str, size: Size) -> list[Row]:
    """Run one benchmark in a directory that is gone afterwards."""
    module = importlib.import_module(f"benchmarks.bench_{name}")
    measure: Callable[[Path, Size], list[Row]] = module.run
    work = Path(tempfile.mkdtemp(prefix="hb-"))  # short: sockets lie in it
    logger.disable("supervisor")  # a terminal would be what is measured
    try:
        return measure(work, size)
    finally:
        logger.enable("supervisor")
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
