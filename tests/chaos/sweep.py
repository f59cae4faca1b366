"""Kill a daemon again and again, and see that nothing is lost and nothing is left behind.

    python -m tests.chaos.sweep --kills 200 --seed 7

A first life without faults finds out which points there are. Then every point is once the place of
death, each in a life of its own; the rest of the kills come at random moments. A last life without
faults brings everything to its end, and the invariants are checked.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import trio

from supervisor.runtime.clock import wall_clock
from tests.chaos.faults import Fault
from tests.chaos.host import Host, open_host
from tests.chaos.invariants import Broken, Since, check_images, check_stopped, read_counters
from tests.chaos.places import place
from tests.chaos.workload import Told, Workload

FIRST_SECONDS = 2.0
"""How long the life lasts in which the points are counted."""
LIFE_SECONDS = (0.0, 0.5)
"""When a daemon without a fault is killed from outside."""
PATIENCE_SECONDS = 1.0
"""How long a daemon may take to come to the point where it is to die."""
MOST_TRIES = 3
OUTSIDE = "at a random moment"
SETTLE_SECONDS = 120.0
"""Bounds a hang; everything ends within a few seconds."""
MOST_PASSAGES = 6
"""A point is chosen among its first passages: later ones come too late in a short life."""


@dataclass
class Report:
    """What was done, and what came of it."""

    seed: int
    kills: int = 0
    points: Counter[str] = field(default_factory=Counter)
    """Deaths at each point."""
    lives: Counter[str] = field(default_factory=Counter)
    """How many lives were to end at each point."""
    planned: set[str] = field(default_factory=set)
    facts: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def reached(self) -> set[str]:
        """The points at which a daemon has died."""
        return self.points.keys() - {OUTSIDE}

    def __str__(self) -> str:
        unreached = sorted(self.planned - self.reached)
        lines = [
            f"{self.kills} kills in {self.seconds:.0f} s, seed {self.seed}:"
            f" {len(self.reached)} of {len(self.planned)} named points,"
            f" {self.points[OUTSIDE]} at random moments",
            *(f"  {count:4}  {point}" for point, count in sorted(self.points.items())),
            *(f"     -  {point} (never passed in time)" for point in unreached),
            "; ".join(f"{name}: {count}" for name, count in self.facts.items()),
            *(f"BROKEN: {sentence}" for sentence in self.broken),
        ]
        return "\n".join(lines)


async def sweep(root: Path, *, kills: int, seed: int) -> Report:
    """Kill a daemon `kills` times below `root`, an empty directory; return what came of it."""
    report, rng, broken = Report(seed), random.Random(seed), Broken()
    began = trio.current_time()
    async with open_host(root) as host:
        workload = Workload(host, rng)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workload.run)
            points = await _find_points(host, workload.told)
            report.planned = set(points)
            order = rng.sample(sorted(points), len(points))
            while report.kills < kills:
                if order and rng.random() < 1.2 * len(order) / (kills - report.kills):
                    point = order.pop()
                    report.lives[point] += 1
                    is_last_try = report.lives[point] == MOST_TRIES
                    at = 1 if is_last_try else rng.randint(1, min(points[point], MOST_PASSAGES))
                    died = await _one_life(host, [Fault(point, at)], PATIENCE_SECONDS)
                    if not died and not is_last_try:
                        order.insert(0, point)
                else:
                    await _one_life(host, [], rng.uniform(*LIFE_SECONDS))
                report.kills += 1
            deaths = [entry["point"] for entry in host.journal if entry["event"] == "fault"]
            report.points.update(deaths)
            report.points[OUTSIDE] = report.kills - len(deaths)
            await _settle(host, workload, broken, report)
            nursery.cancel_scope.cancel(reason="the sweep is over")
    report.broken = broken.found
    report.seconds = trio.current_time() - began
    return report


async def _find_points(host: Host, told: Told) -> dict[str, int]:
    assert await host.start(), host.log_tail()
    await trio.sleep(FIRST_SECONDS)
    assert await host.stop() == 0, host.log_tail()
    told.answers.clear()  # that it is stopping
    return host.passed


async def _one_life(host: Host, faults: list[Fault], seconds: float) -> bool:
    """Live until the fault, or for some seconds; say whether it was the fault."""
    died = not await host.start(*faults)
    if not died:
        with trio.move_on_after(seconds):
            await host.wait_ended()
            died = True
    await host.kill()
    assert host.status == -signal.SIGKILL, f"status {host.status}:\n{host.log_tail()}"
    return died


async def _settle(host: Host, workload: Workload, broken: Broken, report: Report) -> None:
    """Live once more without faults, to the end of every build; then look at everything."""
    told = workload.told
    workload.is_paused = True
    began = wall_clock()
    assert await host.start(), host.log_tail()
    with trio.move_on_after(SETTLE_SECONDS) as scope:
        await workload.wait_all_ended()
    broken.check(not scope.cancelled_caught, f"without an end: {sorted(told.unfinished)}")
    images = await check_images(host, told, broken)
    counted = await read_counters(host, broken)
    broken.check(await host.stop() == 0, "the last daemon did not stop cleanly")
    report.facts = await check_stopped(host, told, broken, Since(began, counted))
    report.facts["images pulled"] = images
    report.facts["events followed"] = sum(map(len, told.followed.values()))
    for answer, count in told.answers.items():
        broken.check(False, f"answered {count} times: {answer}")


def main() -> None:
    """Sweep once, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--keep", type=Path, help="where to copy the daemons' log to")
    options = parser.parse_args()
    with place() as root:
        report = trio.run(lambda: sweep(root, kills=options.kills, seed=options.seed))
        print(report)  # noqa: T201 - the result
        if options.keep:
            shutil.copy(root / "daemon.log", options.keep)
    sys.exit(bool(report.broken))


if __name__ == "__main__":
    main()
