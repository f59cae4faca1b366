"""Many builds and many followers at once, with real threads and the real clock."""

from __future__ import annotations

from pathlib import Path

import trio

from supervisor.model.build import Status
from supervisor.model.ids import BuildId
from tests.actors.world import Event, World, open_world, statuses


async def test_every_follower_of_many_builds_hears_the_same_whole_story(data_dir: Path) -> None:
    heard: dict[BuildId, list[list[Event]]] = {}

    async def follow(world: World, ours: BuildId) -> None:
        heard.setdefault(ours, []).append(await world.events(ours))

    with trio.fail_after(60):
        async with open_world(data_dir, max_concurrent_source_builds=4) as world:
            async with trio.open_nursery() as nursery:
                for number in range(12):
                    ours = await world.submit(f"tenant-{number % 3}")
                    for _ in range(3):
                        nursery.start_soon(follow, world, ours)
            for ours in heard:
                assert (await world.wait_end(ours)).status is Status.READY
            assert world.hypervisor.most_running <= 4
    assert len(heard) == 12
    for stories in heard.values():
        assert stories == [stories[0]] * 3
        assert statuses(stories[0]) == ["queued", "building", "pushing", "ready"]


async def test_cancelling_builds_at_any_moment_ends_every_one_of_them(data_dir: Path) -> None:
    with trio.fail_after(60):
        async with open_world(data_dir, max_concurrent_source_builds=2) as world:
            ours = []
            for turns in range(20):
                ours.append(await world.submit())
                for _ in range(3 * turns):
                    await trio.lowlevel.checkpoint()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel, world, ours[-1])
            ends = [(await world.wait_end(each)).status for each in ours]
            assert set(ends) <= {Status.CANCELLED, Status.READY}
            assert Status.CANCELLED in ends
            assert not world.hypervisor.running


async def _cancel(world: World, ours: BuildId) -> None:
    if not (await world.builds.get(ours)).status.is_final:
        await world.builds.cancel(ours)
