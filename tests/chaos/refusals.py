"""A host that refuses: at every named point a call fails once, and the daemon goes on.

    python -m tests.chaos.refusals --seed 7

Each life of the daemon meets a handful of points that fail with a full disk, an I/O error or no
free descriptor. It must neither die nor answer what is not so, and every build must have its end.
"""

from __future__ import annotations

import argparse
import random
import shutil
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
from tests.chaos.workload import Workload

ERRORS = ("ENOSPC", "EIO", "EMFILE")
AT_ONCE = 16
"""Faults in one life."""
COUNT_SECONDS = 2.0
LIFE_SECONDS = 2.0
SETTLE_SECONDS = 60.0


@dataclass
class Refusals:
    """What was refused, and what came of it."""

    refused: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    """Lines of the log that tell of an error that nobody had translated."""
    broken: list[str] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)
    not_started: int = 0
    """Lives that ended while they were recovering, with a reason."""

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{sum(self.refused.values())} refusals at {len(self.refused)} points;"
                f" {self.not_started} daemons did not start",
                *(f"  {count:4}  {point}" for point, count in sorted(self.refused.items())),
                "; ".join(f"{name}: {count}" for name, count in self.facts.items()),
                *(f"answered {count} times: {text}" for text, count in self.answers.items()),
                *(f"CRASH: {line}" for line in self.crashes),
                *(f"BROKEN: {sentence}" for sentence in self.broken),
            ]
        )


async def refuse(root: Path, *, seed: int) -> Refusals:
    """Refuse at every point once with each of the errors, below `root`."""
    result, rng, broken = Refusals(), random.Random(seed), Broken()
    async with open_host(root, POOL_SIZE="0") as host:
        host.calls_are_points = True
        workload = Workload(host, rng)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workload.run)
            assert await host.start(), host.log_tail()
            await trio.sleep(COUNT_SECONDS)
            assert await host.stop() == 0, host.log_tail()
            workload.told.answers.clear()  # that it is stopping
            points = [point for point in host.passed if _is_tried(point)]
            plan = [(point, error) for error in ERRORS for point in sorted(points)]
            rng.shuffle(plan)
            while plan:
                now, plan = plan[:AT_ONCE], plan[AT_ONCE:]
                faults = [Fault(point, rng.randint(2, 5), error) for point, error in now]
                await _one_life(host, faults, result)
            workload.is_paused = True
            began = wall_clock()
            assert await host.start(), host.log_tail()
            with trio.move_on_after(SETTLE_SECONDS) as scope:
                await workload.wait_all_ended()
            left = sorted(workload.told.unfinished)
            broken.check(not scope.cancelled_caught, f"without an end: {left}")
            result.facts["images pulled"] = await check_images(host, workload.told, broken)
            counted = await read_counters(host, broken)
            assert await host.stop() == 0
            result.facts |= await check_stopped(
                host, workload.told, broken, Since(began, counted), is_lossy=True
            )
            nursery.cancel_scope.cancel(reason="enough")
        result.answers = workload.told.answers
        for entry in host.journal:
            if entry["event"] == "fault":
                result.refused[entry["point"]] += 1
        log = host.log.read_text(errors="replace").splitlines()
        result.crashes = [line for line in log if "crashed" in line or "=OSError" in line]
    result.broken += broken.found
    return result


def _is_tried(point: str) -> bool:
    """Say whether a point is one where the real call would fail: a translation lies above it."""
    if point.startswith("unit "):
        return point.endswith("before")
    return point.startswith(("call ", "machine, ")) and point != "machine, process ended"


async def _one_life(host: Host, faults: list[Fault], result: Refusals) -> None:
    """A daemon that cannot recover ends, and says why; one that has recovered goes on."""
    if not await host.start(*faults):
        said = host.log_tail(4000)
        if host.status != 1 or "daemon.failed" not in said.splitlines()[-1]:
            result.broken.append(f"the daemon ended with {host.status}, not saying why: {said}")
        result.not_started += 1
        return
    with trio.move_on_after(LIFE_SECONDS):
        await host.wait_ended()
    if not host.is_running:
        result.broken.append(f"the daemon ended with {host.status}: {host.log_tail(2000)}")
    elif (status := await host.stop()) != 0:
        result.broken.append(f"the daemon stopped with {status}: {host.log_tail(2000)}")


def main() -> None:
    """Refuse once, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--keep", type=Path, help="where to copy the daemon's log to")
    options = parser.parse_args()
    with place() as root:
        result = trio.run(lambda: refuse(root, seed=options.seed))
        print(result)  # noqa: T201 - the result
        if options.keep:
            shutil.copy(root / "daemon.log", options.keep)
    sys.exit(bool(result.broken or result.crashes))


if __name__ == "__main__":
    main()
