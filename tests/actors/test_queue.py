"""The queue: order, capacity, cancellation, and what a crash of anything leaves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
import trio.testing
from trio.testing import MockClock

from supervisor.actors import queue as queue_module
from supervisor.actors.ledger import Ledger
from supervisor.actors.schedule import Capacity
from supervisor.errors import (
    Conflict,
    HostError,
    NotFound,
    NotReady,
    QueueFull,
    RecordDamaged,
    ResourceExhausted,
)
from supervisor.model.build import Build, BuildRequest, ErrorReason, Reason, Status
from supervisor.model.events import status_event
from supervisor.model.ids import Tenant
from supervisor.model.lifecycle import MAX_LOST_ATTEMPTS
from supervisor.runtime.logs import log
from supervisor.runtime.mailbox import ActorGone, Mailbox
from supervisor.store import builds
from supervisor.store.database import Database, open_database
from supervisor.store.idempotency import IdempotencyKey, insert_build
from supervisor.store.tables import builds as table
from tests.actors.world import World, open_world, statuses
from tests.fakes.agent import Working, agent, fail_step, succeed
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.registry import FakeRegistry
from tests.kit import cancel_at_every_checkpoint
from tests.samples import POLICY, SOURCE_BYTES, a_build, build_id

pytestmark = pytest.mark.usefixtures("inline_threads")


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """The errors that are logged while the test runs."""
    found: list[str] = []
    handler = log.add(lambda message: found.append(message.record["message"]), level="ERROR")
    yield found
    log.remove(handler)


async def left_behind(data_dir: Path, *many: Build) -> None:
    """Make a data directory as a daemon leaves it that was killed."""
    async with open_database(data_dir / "hypeman.db") as database:
        for build in many:
            path = data_dir / "builds" / build.id / "source" / "source.tar.gz"
            path.parent.mkdir(parents=True)
            path.write_bytes(SOURCE_BYTES)
            await database.run(builds.insert_build, build)


def stuck() -> FakeHypervisor:
    """Return a hypervisor whose builds never end by themselves."""
    return FakeHypervisor(agent(Working()))


# -- order and capacity ------------------------------------------------------------------------


async def test_of_three_builds_two_run_and_the_third_waits_and_then_runs(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    working = Working()
    async with open_world(data_dir, hypervisor=FakeHypervisor(agent(working))) as world:
        first, second, third = [await world.submit() for _ in range(3)]
        await world.wait_status(first, Status.BUILDING)
        await world.wait_status(second, Status.BUILDING)
        assert [world.builds.queue_position(b) for b in (first, second, third)] == [None, None, 1]
        assert (await world.builds.get(third)).status is Status.QUEUED
        working.may_finish.set()
        for ours in (first, second, third):
            assert (await world.wait_end(ours)).status is Status.READY
        assert world.builds.queue_position(third) is None
        assert world.hypervisor.most_running == 2


async def test_builds_of_one_tenant_run_in_the_order_they_came_in(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, max_concurrent_source_builds=1) as world:
        ours = [await world.submit() for _ in range(5)]
        for each in ours:
            await world.wait_end(each)
        assert [spec.id for spec in world.hypervisor.booted] == [f"{each}-1" for each in ours]


async def test_a_tenant_that_floods_does_not_hold_up_another(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, max_concurrent_source_builds=1) as world:
        flood = [await world.submit("flooder") for _ in range(5)]
        other = await world.submit("other")
        for each in (*flood, other):
            await world.wait_end(each)
        order = [spec.id.removesuffix("-1") for spec in world.hypervisor.booted]
        assert order.index(other) <= 1


async def test_a_tenants_share_is_a_limit_of_its_own(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    working = Working()
    async with open_world(
        data_dir,
        hypervisor=FakeHypervisor(agent(working)),
        max_concurrent_source_builds=3,
        max_concurrent_builds_per_tenant=1,
    ) as world:
        first, second = await world.submit("acme"), await world.submit("acme")
        other = await world.submit("other")
        await world.wait_status(first, Status.BUILDING)
        await world.wait_status(other, Status.BUILDING)
        assert world.builds.queue_position(second) == 1
        working.may_finish.set()
        assert (await world.wait_end(second)).status is Status.READY


async def test_positions_move_up_when_a_waiting_build_is_cancelled(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, hypervisor=stuck(), max_concurrent_source_builds=1) as world:
        ours = [await world.submit() for _ in range(4)]
        await world.wait_status(ours[0], Status.BUILDING)
        assert [world.queue.position(each) for each in ours] == [None, 1, 2, 3]
        await world.builds.cancel(ours[1])
        await trio.testing.wait_all_tasks_blocked()
        assert [world.queue.position(each) for each in ours] == [None, None, 1, 2]
        assert world.queue.length == 2


async def test_a_full_queue_says_when_to_come_back(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(
        data_dir, hypervisor=stuck(), max_concurrent_source_builds=1, max_queued_builds=2
    ) as world:
        first = await world.submit()
        await world.wait_status(first, Status.BUILDING)
        waiting = [await world.submit() for _ in range(2)]
        with pytest.raises(QueueFull, match="2 builds are waiting") as caught:
            await world.builds.check_room(Tenant("acme"))
        assert caught.value.retry_after_seconds > 0
        with pytest.raises(QueueFull):
            await world.submit()
        await world.builds.cancel(waiting[0])
        await trio.testing.wait_all_tasks_blocked()
        await world.submit()


# -- cancelling --------------------------------------------------------------------------------


async def test_a_waiting_build_is_cancelled_without_ever_having_a_machine(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, hypervisor=stuck(), max_concurrent_source_builds=1) as world:
        running = await world.submit()
        waiting = await world.submit()
        await world.wait_status(running, Status.BUILDING)
        await world.builds.cancel(waiting)
        build = await world.builds.get(waiting)
        assert (build.status, build.error_code) == (Status.CANCELLED, Reason.CANCELLED)
        assert statuses(await world.events(waiting)) == ["queued", "cancelled"]
        assert len(world.hypervisor.booted) == 1


async def test_only_what_has_not_ended_can_be_cancelled(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ended = await world.submit()
        await world.wait_end(ended)
        with pytest.raises(Conflict, match="has ended already"):
            await world.builds.cancel(ended)
        with pytest.raises(NotFound):
            await world.builds.cancel(build_id(404))


async def test_a_wish_to_cancel_is_durable_before_it_is_accepted(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, hypervisor=stuck()) as world:
        ours = await world.submit()
        await world.wait_status(ours, Status.BUILDING)
        await world.builds.cancel(ours)
        assert (await world.builds.get(ours)).cancel_requested


async def test_whoever_is_told_that_a_build_will_be_cancelled_is_told_the_truth(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    """Sweep a build's life: at each step somebody cancels it. No answer is ever wrong."""
    request = BuildRequest(POLICY, image_name="app:1")
    accepted: dict[bool, int] = {True: 0, False: 0}
    async with open_world(data_dir) as world:
        for steps in itertools.count():
            world.registry.names.clear()
            ours = await world.submit(request=request)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            was_ready = (await world.builds.get(ours)).status is Status.READY
            try:
                await world.builds.cancel(ours)
            except Conflict:
                is_accepted = False
            else:
                is_accepted = True
            build = await world.wait_end(ours)
            assert build.status is (Status.CANCELLED if is_accepted else Status.READY)
            assert bool(world.registry.names) is not is_accepted
            accepted[is_accepted] += 1
            if was_ready:
                break
    assert accepted[True] > 50
    assert accepted[False] > 3


async def test_a_cancellation_of_what_the_daemon_has_just_put_back_is_kept(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, hypervisor=stuck()) as world:
        ours = await world.submit()
        await world.wait_status(ours, Status.BUILDING)
        await world.queue.drain()
        world.runner.interrupt()
        await world.builds.cancel(ours)
        assert (await world.wait_end(ours)).status is Status.CANCELLED


# -- idempotency -------------------------------------------------------------------------------


async def test_a_repeated_request_is_answered_however_full_the_queue_is(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    acme = Tenant("acme")
    async with open_world(
        data_dir, hypervisor=stuck(), max_concurrent_source_builds=1, max_queued_builds=1
    ) as world:
        running = await world.submit(key=IdempotencyKey("k1", "h1"))
        await world.wait_status(running, Status.BUILDING)
        await world.submit()
        await world.builds.check_room(acme, "k1")
        assert await world.submit(key=IdempotencyKey("k1", "h1")) == running
        with pytest.raises(Conflict, match=running):
            await world.submit(key=IdempotencyKey("k1", "h2"))
        for tenant, key in (("acme", "k2"), ("rival", "k1")):
            with pytest.raises(QueueFull):
                await world.builds.check_room(Tenant(tenant), key)
            with pytest.raises(QueueFull):
                await world.submit(tenant, key=IdempotencyKey(key, "h1"))
        await world.queue.drain()
        assert await world.submit(key=IdempotencyKey("k1", "h1")) == running
        assert world.queue.length == 1


# -- starting is recovering --------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.BUILDING, Status.PUSHING])
async def test_a_build_whose_machine_died_with_the_daemon_gets_another_attempt(
    data_dir: Path, status: Status, autojump_clock: MockClock
) -> None:
    await left_behind(data_dir, a_build(status=status, attempt=1, started_at=1.0))
    async with open_world(data_dir) as world:
        build = await world.wait_end(build_id(1))
        assert (build.status, build.attempt, build.started_at) == (Status.READY, 2, 1.0)
        assert [spec.id for spec in world.hypervisor.booted] == [f"{build_id(1)}-2"]
        assert statuses(await world.events(build_id(1))) == [
            "queued",
            "building",
            "pushing",
            "ready",
        ]


async def test_a_build_that_took_the_daemon_down_too_often_is_given_up(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    await left_behind(
        data_dir, a_build(status=Status.BUILDING, lost_attempts=MAX_LOST_ATTEMPTS - 1)
    )
    async with open_world(data_dir) as world:
        build = await world.builds.get(build_id(1))
        assert (build.status, build.error_code) == (Status.FAILED, Reason.BUILDER_LOST)
        assert statuses(await world.events(build_id(1))) == ["failed"]
        assert not world.hypervisor.booted


async def test_each_death_of_the_daemon_costs_an_attempt_and_the_last_the_build(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    ours = None
    for attempt in range(1, MAX_LOST_ATTEMPTS + 1):
        working = Working()
        async with open_world(data_dir, hypervisor=FakeHypervisor(agent(working))) as world:
            ours = ours or await world.submit()
            await working.is_building.wait()
            assert (await world.builds.get(ours)).attempt == attempt
    assert ours is not None
    async with open_world(data_dir) as world:
        assert (await world.builds.get(ours)).error_code is Reason.BUILDER_LOST
        seen = statuses(await world.events(ours))
        assert seen == ["queued", "building"] * MAX_LOST_ATTEMPTS + ["failed"]


@pytest.mark.parametrize("status", [Status.QUEUED, Status.BUILDING, Status.PUSHING])
async def test_a_wish_to_cancel_survives_the_daemon(
    data_dir: Path, status: Status, autojump_clock: MockClock
) -> None:
    await left_behind(data_dir, a_build(status=status, attempt=1, cancel_requested=True))
    async with open_world(data_dir) as world:
        build = await world.builds.get(build_id(1))
        assert (build.status, build.error_code) == (Status.CANCELLED, Reason.CANCELLED)
        assert not world.hypervisor.booted


@pytest.mark.parametrize(
    "stored",
    [
        a_build(status=Status.QUEUED, attempt=1, cancel_requested=True),
        a_build(status=Status.PUSHING, attempt=3, lost_attempts=MAX_LOST_ATTEMPTS - 1),
        replace(a_build(attempt=1), created_at=-1.0),
    ],
    ids=["cancelled", "given-up", "damaged"],
)
async def test_what_an_earlier_attempt_pushed_goes_when_the_build_ends_without_an_image(
    data_dir: Path, stored: Build, autojump_clock: MockClock
) -> None:
    await left_behind(data_dir, stored)
    registry = FakeRegistry()
    other = (f"builds/{build_id(2)}", "sha256:" + "1" * 64)
    registry.images = {(f"builds/{stored.id}", "sha256:" + "0" * 64), other}
    async with open_world(data_dir, registry=registry) as world:
        assert (await world.wait_end(stored.id)).status in (Status.CANCELLED, Status.FAILED)
        assert registry.images == {other}


async def test_what_an_attempt_pushed_goes_when_the_build_is_cancelled_while_it_waits_again(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    await left_behind(data_dir, a_build(1), a_build(2, attempt=1))
    registry = FakeRegistry()
    registry.images = {(f"builds/{build_id(2)}", "sha256:" + "0" * 64)}
    async with open_world(
        data_dir, hypervisor=stuck(), registry=registry, max_concurrent_source_builds=1
    ) as world:
        await world.wait_status(build_id(1), Status.BUILDING)
        await world.builds.cancel(build_id(2))
        assert registry.images == set()


async def test_planned_stops_lose_nothing_however_many(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    ours = None
    for attempt in range(1, MAX_LOST_ATTEMPTS + 3):
        async with open_world(data_dir, hypervisor=stuck()) as world:
            ours = ours or await world.submit()
            await world.wait_output(ours, "working")
            assert (await world.builds.get(ours)).attempt == attempt
            await world.queue.drain()
            await world.runner.drain(0)
    assert ours is not None
    async with open_world(data_dir) as world:
        build = await world.wait_end(ours)
        assert (build.status, build.lost_attempts) == (Status.READY, 0)


async def test_waiting_builds_keep_their_order_over_a_restart(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    await left_behind(data_dir, *(a_build(n) for n in (3, 1, 2)))
    async with open_world(data_dir, max_concurrent_source_builds=1) as world:
        for number in (1, 2, 3):
            await world.wait_end(build_id(number))
        order = [spec.id for spec in world.hypervisor.booted]
        assert order == [f"{build_id(number)}-1" for number in (1, 2, 3)]


async def test_builds_that_have_ended_are_left_alone(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    ended = [a_build(n, status=s, completed_at=1.0) for n, s in enumerate(Status) if s.is_final]
    await left_behind(data_dir, *ended)
    async with open_world(data_dir) as world:
        for build in ended:
            assert await world.builds.get(build.id) == build


# -- a crash of the queue ----------------------------------------------------------------------


class CrashingOnce(Ledger):
    """Fails in the middle of the transition that `crash_at` names, once, as a bug would."""

    crash_at: Status | None = None

    async def apply(self, build: Build, event: Any) -> Build:
        after = await super().apply(build, event)
        if after.status is self.crash_at:
            self.crash_at = None
            raise KeyError("a bug")
        return after


def crashing(ledger: Ledger) -> Ledger:
    ledger.__class__ = CrashingOnce
    return ledger


def crash_at(world: World, status: Status) -> None:
    assert isinstance(world.ledger, CrashingOnce)
    world.ledger.crash_at = status


async def test_a_crash_of_the_queue_ends_nothing_that_runs(
    data_dir: Path, errors: list[str], autojump_clock: MockClock
) -> None:
    working = Working()
    async with open_world(
        data_dir,
        hypervisor=FakeHypervisor(agent(working)),
        wrap_ledger=crashing,
        max_concurrent_source_builds=1,
    ) as world:
        running = await world.submit()
        waiting = await world.submit()
        await world.wait_status(running, Status.BUILDING)
        crash_at(world, Status.CANCELLED)
        with pytest.raises(ActorGone):
            await world.builds.cancel(waiting)
        last = await world.submit()  # answered by the next queue
        assert errors == ["actor.crashed"]
        assert list(world.runner.running) == [running]
        assert world.queue.position(last) == 1
        working.may_finish.set()
        assert (await world.wait_end(running)).status is Status.READY
        assert (await world.wait_end(last)).status is Status.READY
        assert (await world.builds.get(waiting)).status is Status.CANCELLED
        assert len(world.hypervisor.booted) == 2


async def test_a_crash_between_the_decision_to_start_and_the_start_costs_an_attempt_only(
    data_dir: Path, errors: list[str], autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, wrap_ledger=crashing) as world:
        crash_at(world, Status.BUILDING)
        ours = await world.submit()
        build = await world.wait_end(ours)
        assert (build.status, build.attempt) == (Status.READY, 2)
        assert errors == ["actor.crashed"]


async def test_a_build_that_ends_while_the_queue_restarts_frees_its_slot(
    data_dir: Path, errors: list[str], autojump_clock: MockClock
) -> None:
    working = Working()
    async with open_world(
        data_dir,
        hypervisor=FakeHypervisor(agent(working)),
        wrap_ledger=crashing,
        max_concurrent_source_builds=1,
    ) as world:
        running, waiting, third = [await world.submit() for _ in range(3)]
        await world.wait_status(running, Status.BUILDING)
        crash_at(world, Status.CANCELLED)
        with pytest.raises(ActorGone):
            await world.builds.cancel(third)
        working.may_finish.set()
        assert (await world.wait_end(waiting)).status is Status.READY


# -- rows that are damaged ----------------------------------------------------------------------

DAMAGE = {
    "request": "'{\"policy\": '",
    "request of another shape": ("request", "'[1, 2]'"),
    "request in no encoding": ("request", "CAST(X'7bff' AS TEXT)"),
    "build_args": "'7'",
    "status": "'bui1ding'",
    "created_at": "'yesterday'",
    "queued_at": "1e300",
    "attempt": "'x'",
    "error_code": "'gremlins'",
    "tenant": "X'ff'",
    "dockerfile": "X'ff'",
    "source_sha256": "X'ff'",
    "source_size_bytes": "'large'",
    "error": "X'ff'",
    "image_digest": "X'ff'",
    "lost_attempts": "'x'",
    "provenance": "'[1]'",
    "phases": "'{\"lunch\": 1}'",
    "phases of another shape": ("phases", "'[]'"),
}


def damage(connection: sa.Connection, number: int, column: str, value: str) -> None:
    """Replace what is stored in a column of a build by an SQL expression."""
    statement = f"UPDATE builds SET {column} = {value} WHERE id = '{build_id(number)}'"  # noqa: S608
    assert connection.exec_driver_sql(statement).rowcount == 1


@pytest.mark.parametrize("what", DAMAGE.items(), ids=DAMAGE)
async def test_a_damaged_row_ends_its_build_and_holds_up_no_other(
    data_dir: Path,
    what: tuple[str, str | tuple[str, str]],
    errors: list[str],
    autojump_clock: MockClock,
) -> None:
    name, how = what
    column, value = how if isinstance(how, tuple) else (name, how)
    await left_behind(data_dir, a_build(1, status=Status.PUSHING), a_build(2), a_build(3))
    async with open_database(data_dir / "hypeman.db") as database:
        await database.run(damage, 1, column, value)
    for _ in range(2):  # it stays like that over the next start
        async with open_world(data_dir) as world:
            bad = await world.builds.get(build_id(1))
            assert (bad.status, bad.error_code) == (Status.FAILED, Reason.BUILDER_LOST)
            assert bad.error_reason is ErrorReason.RECORD_DAMAGED
            assert "damaged" in (bad.error or "")
            assert statuses(await world.events(build_id(1)))[-1] == "failed"
            for number in (2, 3):
                assert (await world.wait_end(build_id(number))).status is Status.READY
            listed = await world.builds.list(builds.BuildFilter(limit=10))
            assert [build.id for build in listed] == [build_id(3), build_id(2), build_id(1)]
    assert errors == ["build.record_damaged"]


async def test_a_row_that_is_damaged_while_its_build_waits_holds_up_no_other(
    data_dir: Path, errors: list[str], autojump_clock: MockClock
) -> None:
    working = Working()
    async with open_world(
        data_dir, hypervisor=FakeHypervisor(agent(working)), max_concurrent_source_builds=1
    ) as world:
        first, bad, last = [await world.submit() for _ in range(3)]
        await world.wait_status(first, Status.BUILDING)
        await world.database.run(
            lambda connection: connection.execute(
                table.update().where(table.c.id == bad).values(status="?")
            )
        )
        await world.builds.cancel(first)
        await world.wait_status(last, Status.BUILDING)
        assert (await world.wait_end(bad)).status is Status.FAILED
        assert errors == ["build.record_damaged"]


async def test_a_damaged_row_of_an_ended_build_is_listed_told_and_can_be_removed(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    ended = a_build(1, status=Status.READY, completed_at=1.0)
    await left_behind(data_dir, ended, a_build(2))
    async with open_database(data_dir / "hypeman.db") as database:
        await database.run(damage, 1, "request", "'{'")
    async with open_world(data_dir) as world:
        listed = await world.builds.list(builds.BuildFilter(limit=10))
        assert [build.id for build in listed] == [build_id(2), build_id(1)]
        assert listed[1].status is Status.READY
        with pytest.raises(RecordDamaged, match=f"{build_id(1)} is damaged"):
            await world.builds.get(build_id(1))
        await world.builds.purge(build_id(1))
        with pytest.raises(NotFound):
            await world.builds.get(build_id(1))


async def test_files_that_are_garbage_hold_up_no_start(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    await left_behind(data_dir, a_build(1), a_build(2, status=Status.READY, completed_at=1.0))
    for number in (1, 2):
        files = data_dir / "builds" / build_id(number)
        (files / "metadata.json").write_bytes(b"\0\xff{")
        (files / "logs").mkdir()
        (files / "logs" / "events.jsonl").write_bytes(b'{"type":"log"}\n\xff\0garbage{"type"')
    async with open_world(data_dir) as world:
        assert (await world.wait_end(build_id(1))).status is Status.READY
        assert b'"ready"' in (data_dir / "builds" / build_id(1) / "metadata.json").read_bytes()
        async with world.ledger.logs.open(build_id(2)) as events:
            assert events.is_final, "what was torn off is taken back, and the end is told"


@pytest.mark.parametrize("status", [Status.QUEUED, Status.BUILDING, Status.PUSHING])
async def test_a_log_that_is_ahead_of_the_database_loses_its_end_and_the_build_goes_on(
    data_dir: Path, status: Status, autojump_clock: MockClock, errors: list[str]
) -> None:
    """As after a backup is restored: its files were copied after its database."""
    await left_behind(data_dir, a_build(1, status=status, attempt=int(status is not Status.QUEUED)))
    end = status_event("2026-03-01T12:00:00.000Z", a_build(1, status=Status.FAILED))
    logs = data_dir / "builds" / build_id(1) / "logs"
    logs.mkdir()
    (logs / "events.jsonl").write_bytes(end + b"\n")
    async with open_world(data_dir) as world:
        assert (await world.wait_end(build_id(1))).status is Status.READY
        told = [event["status"] for event in await world.events(build_id(1)) if "status" in event]
        assert told[-3:] == ["building", "pushing", "ready"]
        assert "failed" not in told
    assert errors == []


# -- a host that fails -------------------------------------------------------------------------


def refusing(*units: object) -> Any:
    """Return a `Database.run_sync` that finds the disk full for some units."""
    run_sync = Database.run_sync

    def refuse(self: Database, unit: Any, *args: Any, **kwargs: Any) -> Any:
        if unit in units:
            raise ResourceExhausted("the database cannot be written: the disk is full")
        return run_sync(self, unit, *args, **kwargs)

    return refuse


async def test_a_submission_that_the_disk_refuses_is_answered_so_and_not_recorded(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, errors: list[str], autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        with monkeypatch.context() as full:
            full.setattr(Database, "run_sync", refusing(insert_build))
            with pytest.raises(ResourceExhausted, match="full"):
                await world.submit()
        assert await world.builds.list(builds.BuildFilter(limit=10)) == []
        assert (await world.wait_end(await world.submit())).status is Status.READY
        assert errors == []


async def test_a_cancellation_that_the_disk_refuses_is_answered_so(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, errors: list[str], autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, hypervisor=stuck(), max_concurrent_source_builds=1) as world:
        running, waiting = await world.submit(), await world.submit()
        await world.wait_status(running, Status.BUILDING)
        with monkeypatch.context() as full:
            full.setattr(
                Database,
                "run_sync",
                refusing(builds.update_build, builds.mark_cancel_requested),
            )
            for ours in (running, waiting):
                with pytest.raises(HostError, match="full"):
                    await world.builds.cancel(ours)
        for ours in (running, waiting):
            await world.builds.cancel(ours)
            assert (await world.wait_end(ours)).status is Status.CANCELLED
        assert "actor.crashed" not in errors


async def test_what_cannot_be_started_now_is_started_later(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, errors: list[str], autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        with monkeypatch.context() as full:
            full.setattr(Database, "run_sync", refusing(builds.update_build))
            ours = await world.submit()
            await trio.sleep(10 * queue_module.HOST_RETRY_SECONDS)
            assert (await world.builds.get(ours)).status is Status.QUEUED
        began = trio.current_time()
        assert (await world.wait_end(ours)).status is Status.READY
        assert trio.current_time() - began <= queue_module.HOST_RETRY_SECONDS + 1
        assert set(errors) == {"queue.cannot_move_on"}


async def test_a_build_whose_log_can_never_be_opened_holds_up_no_other_and_is_given_up(
    data_dir: Path, errors: list[str], autojump_clock: MockClock
) -> None:
    await left_behind(data_dir, a_build(1))
    (data_dir / "builds" / build_id(1) / "logs").write_text("no directory")
    async with open_world(data_dir, max_concurrent_source_builds=1) as world:
        other = await world.submit("other")
        with trio.fail_after(queue_module.LOG_PATIENCE_SECONDS / 2):
            assert (await world.wait_end(other)).status is Status.READY
        assert not (await world.builds.get(build_id(1))).status.is_final
        await trio.sleep(2 * MAX_LOST_ATTEMPTS * queue_module.LOG_PATIENCE_SECONDS)
        build = await world.builds.get(build_id(1))
        assert (build.status, build.error_reason) == (Status.FAILED, ErrorReason.ATTEMPTS_LOST)
        assert build.attempt == MAX_LOST_ATTEMPTS
        assert set(errors) == {"build.not_begun", "build.announcement_failed"}
        told = len(errors)
        await trio.sleep(10 * queue_module.HOST_RETRY_SECONDS)
        assert len(errors) == told, "it is not tried for ever"


# -- stopping ----------------------------------------------------------------------------------


async def test_a_queue_that_drains_takes_nothing_in_and_starts_nothing(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    working = Working()
    fake = FakeHypervisor(agent(working))
    async with open_world(data_dir, hypervisor=fake, max_concurrent_source_builds=1) as world:
        running, waiting = await world.submit(), await world.submit()
        await world.wait_status(running, Status.BUILDING)
        assert world.builds.readiness() is None
        await world.queue.drain()
        assert world.builds.readiness() == "the daemon is stopping"
        with pytest.raises(NotReady):
            await world.builds.check_room(Tenant("acme"))
        with pytest.raises(NotReady):
            await world.submit()
        working.may_finish.set()
        await world.wait_end(running)
        await trio.testing.wait_all_tasks_blocked()
        assert (await world.builds.get(waiting)).status is Status.QUEUED
        assert world.queue.position(waiting) == 1
        await world.builds.cancel(waiting)
    assert len(fake.booted) == 1


async def test_draining_lets_builds_finish_within_the_grace(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    working = Working()
    async with open_world(data_dir, hypervisor=FakeHypervisor(agent(working))) as world:
        ours = await world.submit()
        await working.is_building.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.runner.drain, 30)
            await trio.sleep(20)
            working.may_finish.set()
        assert (await world.builds.get(ours)).status is Status.READY
        assert not world.runner.running


async def test_what_does_not_finish_within_the_grace_waits_for_the_next_daemon(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, hypervisor=stuck()) as world:
        ours = await world.submit()
        await world.wait_status(ours, Status.BUILDING)
        await world.queue.drain()
        began = trio.current_time()
        await world.runner.drain(30)
        assert 30 <= trio.current_time() - began < 35
        assert not world.hypervisor.running
        build = await world.builds.get(ours)
        assert (build.status, build.attempt, build.error_code) == (Status.QUEUED, 1, None)
    async with open_world(data_dir) as world:
        build = await world.wait_end(ours)
        assert (build.status, build.attempt) == (Status.READY, 2)
        assert statuses(await world.events(ours)) == [
            "queued",
            "building",
            "queued",
            "building",
            "pushing",
            "ready",
        ]


async def test_a_build_that_is_cancelled_while_it_is_interrupted_is_cancelled(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, hypervisor=stuck()) as world:
        ours = await world.submit()
        await world.wait_status(ours, Status.BUILDING)
        await world.queue.drain()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.runner.drain, 0)
            nursery.start_soon(world.builds.cancel, ours)
        build = await world.wait_end(ours)
        assert build.status is Status.CANCELLED


async def test_a_build_that_outlives_the_queue_ends_quietly(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        mailbox: Mailbox[queue_module.Message] = Mailbox()
        limits = queue_module.QueueLimits(Capacity(1, 1), 1)
        gone = queue_module.QueueActor(mailbox, world.queue, world.ledger, world.runner, limits)
        mailbox.close()
        build = a_build(status=Status.BUILDING, attempt=1)
        await world.ledger.enter(build)
        world.ledger.source_path(build.id).parent.mkdir(parents=True)
        world.ledger.source_path(build.id).write_bytes(SOURCE_BYTES)
        world.runner.start_nowait(build, gone._done)
        assert (await world.wait_end(build.id)).status is Status.READY


async def test_nobody_waits_for_a_queue_that_is_gone(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        pass
    with pytest.raises(ActorGone):
        await world.builds.cancel(build_id(1))


# -- cancellation of those who ask -------------------------------------------------------------


async def test_a_client_that_goes_away_leaves_a_build_that_is_whole_or_absent(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    fake = FakeHypervisor(agent(succeed))
    async with open_world(data_dir, hypervisor=fake) as world:
        known: set[str] = set()

        async def submit() -> None:
            await world.submit()

        async def check(_: int) -> None:
            await trio.testing.wait_all_tasks_blocked()
            for build in await world.builds.list(builds.BuildFilter(limit=1000)):
                if build.id not in known:
                    known.add(build.id)
                    assert (await world.wait_end(build.id)).status is Status.READY

        await cancel_at_every_checkpoint(submit, check)
        assert known
        assert not world.runner.running


async def test_a_failed_build_frees_its_slot(data_dir: Path, autojump_clock: MockClock) -> None:
    fake = FakeHypervisor(agent(fail_step))
    async with open_world(data_dir, hypervisor=fake, max_concurrent_source_builds=1) as world:
        ours = [await world.submit() for _ in range(3)]
        for each in ours:
            assert (await world.wait_end(each)).status is Status.FAILED
        assert len(fake.booted) == 3
