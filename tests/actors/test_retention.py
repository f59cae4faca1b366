"""What is kept no longer goes, whatever interrupts it; everything else stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from trio.testing import MockClock

from supervisor.actors.builds import sweep_uploads
from supervisor.actors.retention import INTERVAL_SECONDS, RetentionActor, RetentionPolicy
from supervisor.errors import NotFound, ResourceExhausted
from supervisor.model.build import Build, Status
from supervisor.model.ids import BuildId
from supervisor.store import builds
from supervisor.store.database import Database
from supervisor.store.idempotency import KEPT_SECONDS, IdempotencyKey, insert_build
from supervisor.store.registry_tables import repositories
from supervisor.store.tables import idempotency_keys
from tests.actors.world import World, open_world
from tests.kit import cancel_at_every_checkpoint
from tests.samples import CREATED_AT, DIGEST, a_build, build_id

pytestmark = pytest.mark.usefixtures("inline_threads")

DAY = 86_400.0
MONTH = RetentionPolicy(seconds=30 * DAY, newest_kept=0)


@pytest.fixture
async def world(data_dir: Path) -> AsyncIterator[World]:
    async with open_world(data_dir) as opened:
        yield opened


async def ended(world: World, number: int, *, days_ago: float, **changes: object) -> Build:
    """Store a build that has ended, with files and an image."""
    changes = {"status": Status.READY, "completed_at": CREATED_AT - days_ago * DAY, **changes}
    build = a_build(number, **changes)  # type: ignore[arg-type]
    world.ledger.source_path(build.id).parent.mkdir(parents=True)
    world.ledger.source_path(build.id).write_bytes(b"source")
    world.registry.images.add((f"builds/{build.id}", DIGEST))
    await world.database.run(builds.insert_build, build)
    return build


async def what_is_left(world: World) -> list[BuildId]:
    """Return the builds that are there, each of them whole; there is nothing beside them."""
    stored = await world.database.run(builds.list_builds, builds.BuildFilter(limit=1000))
    ids = sorted(build.id for build in stored)
    assert sorted(path.name for path in (world.settings.data_dir / "builds").iterdir()) == ids
    assert sorted(repository for repository, _ in world.registry.images) == [
        f"builds/{each}" for each in ids
    ]
    return ids


async def test_what_ended_long_ago_goes_with_files_and_image_and_nothing_else(
    world: World,
) -> None:
    await ended(world, 1, days_ago=31)
    await ended(world, 2, days_ago=29)
    await ended(world, 3, days_ago=400, status=Status.FAILED)
    await ended(world, 4, days_ago=400, status=Status.CANCELLED)
    await ended(world, 5, days_ago=400, status=Status.PUSHING, completed_at=None)
    await RetentionActor(world.ledger, MONTH).remove_expired()
    assert await what_is_left(world) == [build_id(2), build_id(5)]
    with pytest.raises(NotFound):
        await world.builds.get(build_id(1))


@pytest.mark.parametrize(("newest_kept", "left"), [(0, 0), (1, 1), (3, 3), (4, 4), (5, 4)])
async def test_the_newest_stay_however_old_they_are(
    world: World, newest_kept: int, left: int
) -> None:
    for number in range(1, 5):
        await ended(world, number, days_ago=400)
    policy = RetentionPolicy(MONTH.seconds, newest_kept)
    await RetentionActor(world.ledger, policy).remove_expired()
    assert await what_is_left(world) == [build_id(n) for n in range(5 - left, 5)]


async def test_more_than_one_batch_goes_in_one_round(world: World) -> None:
    for number in range(1, 251):
        await ended(world, number, days_ago=31)
    await RetentionActor(world.ledger, MONTH).remove_expired()
    assert await what_is_left(world) == []


async def test_expired_idempotency_keys_go_and_their_builds_stay(world: World) -> None:
    for number, age in ((1, KEPT_SECONDS + 60), (2, KEPT_SECONDS - 60)):
        times = {"created_at": CREATED_AT - age, "completed_at": CREATED_AT}
        made = a_build(number, status=Status.READY, **times)
        await world.database.run(insert_build, made, IdempotencyKey(f"key{number}", "hash"))
    await RetentionActor(world.ledger, MONTH).remove_expired()
    keys = await world.database.run(
        lambda connection: [row.key for row in connection.execute(sa.select(idempotency_keys))]
    )
    assert keys == ["key2"]
    assert len(await world.database.run(builds.list_builds, builds.BuildFilter(limit=9))) == 2


async def test_the_image_of_a_build_that_is_not_recorded_goes(world: World) -> None:
    """A crash between the row and the image leaves one."""
    kept = await ended(world, 1, days_ago=1)
    names = [f"builds/{build_id(7)}", f"builds/{kept.id}", "acme/builds", "buildsx/y"]
    world.registry.images |= {(name, DIGEST) for name in names}

    def store_names(connection: sa.Connection) -> None:
        rows = [{"name": name, "created_at": 0.0} for name in names]
        connection.execute(repositories.insert(), rows)

    async def delete(repository: str) -> bool:
        unit = repositories.delete().where(repositories.c.name == repository)
        await world.database.run(lambda connection: connection.execute(unit))
        return await world.registry.delete_repository(repository)

    await world.database.run(store_names)
    world.ledger.delete_repository = delete
    await RetentionActor(world.ledger, MONTH).remove_expired()
    assert {name for name, _ in world.registry.images} == set(names[1:])


async def test_a_round_that_is_cut_off_anywhere_is_made_up_for(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    """Sweep a round; whatever it leaves, the next start of the daemon and a round remove."""
    async with open_world(data_dir) as world:
        actor = RetentionActor(world.ledger, MONTH)

        kept = await ended(world, 9, days_ago=1)

        async def one_round() -> None:
            with trio.CancelScope(shield=True):
                for number in (1, 2, 3):
                    await ended(world, number, days_ago=31)
            await actor.remove_expired()

        async def check(_: int) -> None:
            await sweep_uploads(world.ledger, data_dir / "builds")
            # What `find_stray_images` finds, which looks at the real registry's tables.
            stored = await world.database.run(builds.list_builds, builds.BuildFilter(limit=9))
            world.registry.images &= {(f"builds/{each.id}", DIGEST) for each in stored}
            await actor.remove_expired()
            assert await what_is_left(world) == [kept.id]

        assert await cancel_at_every_checkpoint(one_round, check) > 10


async def test_a_round_comes_at_the_start_and_every_hour(
    world: World, autojump_clock: MockClock
) -> None:
    await ended(world, 1, days_ago=31)
    async with trio.open_nursery() as nursery:
        await nursery.start(RetentionActor(world.ledger, MONTH).run)
        await trio.sleep(1)
        assert await what_is_left(world) == []
        await ended(world, 2, days_ago=31)
        await trio.sleep(INTERVAL_SECONDS - 2)
        assert await what_is_left(world) == [build_id(2)]
        await trio.sleep(2)
        assert await what_is_left(world) == []
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_host_that_fails_delays_what_should_go(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    await ended(world, 1, days_ago=31)
    run_sync = Database.run_sync

    def refuse(self: Database, unit: object, *args: object, **kwargs: object) -> object:
        if unit is builds.delete_build:
            raise ResourceExhausted("the database cannot be written: the disk is full")
        return run_sync(self, unit, *args, **kwargs)  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as full:
            full.setattr(Database, "run_sync", refuse)
            await nursery.start(RetentionActor(world.ledger, MONTH).run)
            await trio.sleep(1)
            assert await what_is_left(world) == [build_id(1)]
        await trio.sleep(INTERVAL_SECONDS)
        assert await what_is_left(world) == []
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_clock_that_jumps_forwards_is_not_believed_for_a_day(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ended(world, 1, days_ago=31)
    await ended(world, 2, days_ago=25)
    ahead = 0.0
    monkeypatch.setattr(world.ledger, "clock", lambda: CREATED_AT + ahead + trio.current_time())
    actor = RetentionActor(world.ledger, MONTH)
    async with trio.open_nursery() as nursery:
        await nursery.start(actor.run)
        await trio.sleep(INTERVAL_SECONDS * 1.5)
        assert await what_is_left(world) == [build_id(2)]
        ahead = 7 * DAY
        await trio.sleep(INTERVAL_SECONDS * 23)
        assert await what_is_left(world) == [build_id(2)]
        ahead = 0.0  # set right
        await trio.sleep(INTERVAL_SECONDS * 48)
        assert await what_is_left(world) == [build_id(2)]
        ahead = 7 * DAY  # this time it stays
        await trio.sleep(INTERVAL_SECONDS * 26)
        assert await what_is_left(world) == []
        nursery.cancel_scope.cancel()


async def test_a_clock_that_goes_back_removes_nothing_and_delays_no_other_work(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ended(world, 1, days_ago=29)
    monkeypatch.setattr(world.ledger, "clock", lambda: CREATED_AT - 7 * DAY)
    ours = await world.submit()
    build = await world.wait_end(ours)
    assert build.status is Status.READY
    assert all(seconds >= 0 for seconds in build.phases.values())
    await RetentionActor(world.ledger, MONTH).remove_expired()
    assert sorted(each.id for each in await world.builds.list(builds.BuildFilter(limit=9))) == [
        build_id(1),
        ours,
    ]
