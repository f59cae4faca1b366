"""What the API may do with builds: followers, purging, and what a crash left."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from supervisor.actors import ledger
from supervisor.actors.builds import sweep_uploads
from supervisor.actors.ledger import Ledger
from supervisor.errors import Conflict, HostError, InvalidRequest, NotFound
from supervisor.model.build import Build, BuildRequest, Status
from supervisor.model.events import START, EventId
from supervisor.model.ids import BuildId, Tenant
from supervisor.runtime.files import remove_tree_sync
from supervisor.store import builds
from supervisor.store.builds import BuildFilter
from tests.actors.world import Event, World, contents, open_world, statuses
from tests.fakes.agent import Working, agent
from tests.fakes.hypervisor import FakeHypervisor
from tests.kit import cancel_at_every_checkpoint
from tests.samples import POLICY, a_build, build_id

pytestmark = pytest.mark.usefixtures("inline_threads")


# -- followers ---------------------------------------------------------------------------------


async def read_once(
    world: World, ours: BuildId, after: int, *, follow: bool
) -> tuple[list[Event], int]:
    """Connect, read one batch, and hang up. Return the events, and the id to resume after."""
    async with world.builds.open_events(ours, after=EventId(after), follow=follow) as reader:
        batch = await reader.next_batch()
        if batch is None:
            return [], after
        return [json.loads(event) for _, event in batch.events], batch.last_id


async def test_a_follower_that_reconnects_all_the_time_gets_every_event_once(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ours = await world.submit()
        heard: list[Event] = []
        at: int = START
        while not heard or statuses(heard)[-1:] != ["ready"]:
            found, at = await read_once(world, ours, at, follow=True)
            heard += found
        assert heard == await world.events(ours)
        assert await read_once(world, ours, at, follow=True) == ([], at)


async def test_every_event_can_be_resumed_after(data_dir: Path, autojump_clock: MockClock) -> None:
    async with open_world(data_dir) as world:
        ours = await world.submit()
        await world.wait_end(ours)
        whole = await world.events(ours)
        async with world.builds.open_events(ours, after=START, follow=False) as reader:
            batch = await reader.next_batch()
        assert batch is not None
        for number, (at, _) in enumerate(batch.events, start=1):
            assert await world.events(ours, after=at) == whole[number:]


async def test_a_place_is_one_that_the_events_have_reached(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ours = await world.submit()
        await world.wait_end(ours)
        async with world.ledger.logs.open(ours) as log:
            end = log.end
        await world.builds.check_place(ours, EventId(end))
        with pytest.raises(InvalidRequest, match=f"no event {end + 1}; its last one .* is {end}"):
            await world.builds.check_place(ours, EventId(end + 1))


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("after", [-1, -(10**20), 1, 10**20])
async def test_a_follower_with_any_id_gets_an_end(
    data_dir: Path, follow: bool, after: int, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ours = await world.submit()
        await world.wait_end(ours)
        async with world.builds.open_events(ours, after=EventId(after), follow=follow) as reader:
            found = 0
            while (batch := await reader.next_batch()) is not None:
                found += len(batch.events)
        assert bool(found) is (after < 100)


async def test_a_follower_with_an_id_inside_the_last_event_waits_and_does_not_spin(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    working = Working()
    async with open_world(data_dir, hypervisor=FakeHypervisor(agent(working))) as world:
        ours = await world.submit()
        await world.wait_output(ours, "working")
        async with world.ledger.logs.open(ours) as log:
            inside = EventId(log.end - 1)
        async with world.builds.open_events(ours, after=inside, follow=True) as reader:
            with trio.move_on_after(3) as waiting:
                await reader.next_batch()
            assert waiting.cancelled_caught
            working.may_finish.set()
            batch = await reader.next_batch()
            assert batch is not None
            assert json.loads(batch.events[0][1])["status"] == "pushing"


async def test_not_following_ends_at_the_last_event_there_is(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    working = Working()
    async with open_world(data_dir, hypervisor=FakeHypervisor(agent(working))) as world:
        ours = await world.submit()
        await world.wait_output(ours, "working")
        heard: list[Event] = []
        async with world.builds.open_events(ours, after=START, follow=False) as reader:
            while (batch := await reader.next_batch()) is not None:
                heard += [json.loads(event) for _, event in batch.events]
        assert contents(heard) == ["working"]
        assert statuses(heard) == ["queued", "building"]


async def test_a_batch_that_was_cancelled_comes_again(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ours = await world.submit()
        await world.wait_end(ours)
        whole = await world.events(ours)
        async with world.builds.open_events(ours, after=START, follow=True) as reader:
            with trio.CancelScope() as scope:
                scope.cancel(reason="a heartbeat is due")
                await reader.next_batch()
            batch = await reader.next_batch()
        assert batch is not None
        assert [json.loads(event) for _, event in batch.events] == whole


async def test_a_follower_that_is_cancelled_anywhere_leaves_no_log_open(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ours = await world.submit()
        await world.wait_end(ours)

        async def follow() -> None:
            await world.events(ours)

        async def check(_: int) -> None:
            assert world.ledger.logs.open_count == 0

        assert await cancel_at_every_checkpoint(follow, check) >= 3


async def test_a_slow_follower_holds_up_nobody(data_dir: Path, autojump_clock: MockClock) -> None:
    async with open_world(data_dir) as world:
        ours = await world.submit()
        async with world.builds.open_events(ours, after=START, follow=True) as reader:
            assert (await world.wait_end(ours)).status is Status.READY
            heard: list[Event] = []
            while (batch := await reader.next_batch()) is not None:
                heard += [json.loads(event) for _, event in batch.events]
                await trio.sleep(1000)
        assert contents(heard) == ["compiling", "linking", "no newline"]


async def test_there_is_nothing_to_follow_of_a_build_that_is_not_there(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        with pytest.raises(NotFound):
            await world.events(build_id(404))
        assert not (data_dir / "builds" / build_id(404)).exists()


# -- announcements that were cut short ---------------------------------------------------------


async def test_an_end_that_a_crash_kept_from_being_announced_is_announced_to_the_next_reader(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ours = a_build()
        await world.ledger.enter(ours)
        ended = a_build(status=Status.CANCELLED, completed_at=5.0)
        await world.database.run(builds.update_build, ended)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(world.events, ours.id)
        heard = await world.events(ours.id)
        assert statuses(heard) == ["queued", "cancelled"]
        assert heard[-1]["timestamp"] == "1970-01-01T00:00:05.000Z"
        assert world.builds.log_path(ours.id).read_text().endswith("[cancelled]\n")


class Interleaved(Ledger):
    """Lets readers in between the database and the announcement of an end."""

    before_publish: Any = None

    async def _publish(self, build: Build) -> None:
        if build.status.is_final and self.before_publish is not None:
            await self.before_publish(build.id)
        await super()._publish(build)


def interleaved(ledger: Ledger) -> Ledger:
    ledger.__class__ = Interleaved
    return ledger


async def test_a_reader_that_comes_between_the_end_and_its_announcement_disturbs_nothing(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, wrap_ledger=interleaved) as world:
        assert isinstance(world.ledger, Interleaved)
        world.ledger.before_publish = world.events
        ours = await world.submit()
        build = await world.wait_end(ours)
        assert (build.status, build.attempt) == (Status.READY, 1)
        assert statuses(await world.events(ours)) == ["queued", "building", "pushing", "ready"]


# -- purging and leftovers ---------------------------------------------------------------------


async def test_a_finished_build_can_be_purged_and_nothing_is_left(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ours = await world.submit()
        await world.wait_end(ours)
        await world.builds.purge(ours)
        for ask in (world.builds.get, world.builds.purge, world.builds.steps, world.builds.cancel):
            with pytest.raises(NotFound):
                await ask(ours)
        assert list((data_dir / "builds").iterdir()) == []


async def test_a_build_that_has_not_ended_is_not_purged(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    working = Working()
    async with open_world(data_dir, hypervisor=FakeHypervisor(agent(working))) as world:
        ours = await world.submit()
        await working.is_building.wait()
        with pytest.raises(Conflict, match="cancel it first"):
            await world.builds.purge(ours)


async def test_a_submission_that_was_not_taken_in_is_discarded(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ours = world.builds.new_id()
        path = world.builds.upload_path(ours)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
        await world.builds.discard(ours)
        await world.builds.discard(ours)
        assert list((data_dir / "builds").iterdir()) == []


async def test_what_a_crash_left_of_submissions_is_swept_and_nothing_else(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ours = await world.submit()
        await world.wait_end(ours)
        directory = data_dir / "builds"
        for name in (build_id(7), build_id(8), "lost+found", ".cache"):
            (directory / name / "source").mkdir(parents=True)
        (directory / "note.txt").write_text("keep")
        assert await sweep_uploads(world.ledger, directory) == 2
        left = {path.name for path in directory.iterdir()}
        assert left == {ours, "lost+found", ".cache", "note.txt"}
        assert await sweep_uploads(world.ledger, directory) == 0


async def test_a_leftover_that_cannot_be_removed_holds_up_neither_the_others_nor_the_start(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    stuck = data_dir / "builds" / build_id(7)

    def refuse(path: Path) -> None:
        if path == stuck:
            raise OSError(errno.EIO, "Input/output error")
        remove_tree_sync(path)

    monkeypatch.setattr(ledger, "remove_tree_sync", refuse)
    async with open_world(data_dir) as world:
        for number in (7, 8):
            (data_dir / "builds" / build_id(number)).mkdir()
        assert await sweep_uploads(world.ledger, data_dir / "builds") == 1
        assert list((data_dir / "builds").iterdir()) == [stuck]


# -- asking ------------------------------------------------------------------------------------


async def test_steps_are_seen_while_a_build_runs_and_after_it(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    working = Working()
    async with open_world(data_dir, hypervisor=FakeHypervisor(agent(working))) as world:
        ours = await world.submit()
        await world.wait_output(ours, "working")
        running = await world.builds.steps(ours)
        assert [step.name for step in running] == ["[1/1] RUN sleep"]
        working.may_finish.set()
        await world.wait_end(ours)
        assert tuple(await world.builds.steps(ours)) == tuple(running)


async def test_builds_are_listed_as_asked(data_dir: Path, autojump_clock: MockClock) -> None:
    async with open_world(data_dir) as world:
        tagged = await world.submit(request=BuildRequest(POLICY, tags={"k": "v"}))
        other = await world.submit("other")
        for ours in (tagged, other):
            await world.wait_end(ours)
        found = await world.builds.list(BuildFilter(limit=10, tags={"k": "v"}))
        assert [build.id for build in found] == [tagged]
        found = await world.builds.list(BuildFilter(limit=10, tenant=Tenant("other")))
        assert [build.id for build in found] == [other]


async def test_a_disk_that_refuses_a_new_build_leaves_nothing_in_the_list(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ours = world.builds.new_id()
        (data_dir / "builds" / ours).write_text("a file where a directory should be")
        build = a_build(id=ours)
        with pytest.raises(HostError, match="cannot be opened"):
            await world.queue.submit(build)
        assert await world.builds.list(BuildFilter(limit=10)) == []
