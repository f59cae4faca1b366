"""Many running builds on the fake hypervisor: memory of each actor, and how late the loop is.

Each build has said hello, is building, has printed a line and sends heartbeats. The memory includes
the fake guest, which a real host does not have. The floor of the delay is an idle loop's.
"""

from __future__ import annotations

from pathlib import Path

import trio

from benchmarks.progress import tell
from benchmarks.results import Row, Size, at_most, quantile
from benchmarks.servers import rss_bytes
from tests.actors.world import World, open_world
from tests.fakes.agent import Talk, Working, agent
from tests.fakes.hypervisor import FakeHypervisor

_KIB = 1 << 10


def run(work: Path, size: Size) -> list[Row]:
    """Measure."""
    return trio.run(_measure, work, size)


async def _measure(work: Path, size: Size) -> list[Row]:
    count, samples = size.pick(500, 5), size.pick(5000, 20)
    started = trio.Event()
    building = 0

    async def work_on(talk: Talk) -> None:
        nonlocal building
        working = Working()
        building += 1
        if building == count + 1:
            started.set()
        await working(talk)

    async with open_world(
        work,
        hypervisor=FakeHypervisor(agent(work_on)),
        max_concurrent_source_builds=count + 1,
        max_queued_builds=count + 1,
    ) as world:
        # The first build pays for what all share: modules, caches, threads.
        await world.wait_output(await world.submit(), "working")
        floor = await _delays(samples)
        before = rss_bytes(_own_pid())
        tell(f"actors: {count} builds are started")
        for _ in range(count):
            await world.submit()
        await started.wait()
        await _settle(world)
        grown = rss_bytes(_own_pid()) - before
        tell("actors: the delays of the loop")
        late = await _delays(samples)
    return [
        at_most(f"memory of each of {count} builds", [grown / count / _KIB], "KiB", 256),
        at_most("delay of the event loop, p99", [quantile(late, 0.99) * 1000], "ms", 20),
        Row("delay of an idle event loop, p99", quantile(floor, 0.99) * 1000, "ms"),
    ]


async def _delays(samples: int) -> list[float]:
    """Return how late the loop runs a task that wants to run every millisecond."""
    late = []
    for _ in range(samples):
        wanted = trio.current_time() + 0.001
        await trio.sleep_until(wanted)
        late.append(trio.current_time() - wanted)
    return late


async def _settle(world: World) -> None:
    for build in list(world.runner.running):
        await world.wait_output(build, "working")


def _own_pid() -> int:
    return int(Path("/proc/self").readlink().name)
