"""The supervision of running builds: slots, crashes, and the end of all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from supervisor.actors import build as build_module
from supervisor.errors import HostError
from supervisor.model.build import Reason, Status
from supervisor.model.lifecycle import MAX_LOST_ATTEMPTS
from supervisor.runtime.logs import log
from supervisor.store.eventlog import BuildLog
from tests.actors.world import open_world, statuses
from tests.fakes.agent import Working, agent, succeed
from tests.fakes.hypervisor import FakeHypervisor
from tests.samples import a_build

pytestmark = pytest.mark.usefixtures("inline_threads")


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """The errors that are logged while the test runs."""
    found: list[str] = []
    handler = log.add(lambda message: found.append(message.record["message"]), level="ERROR")
    yield found
    log.remove(handler)


async def crash(*_: Any) -> None:
    raise KeyError("a bug")


async def test_an_actor_that_crashes_is_logged_once_and_its_build_gets_another_attempt(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, errors: list[str], autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        with monkeypatch.context() as buggy:
            buggy.setattr(build_module.BuildActor, "_greet", crash)
            ours = await world.submit()
            await world.wait_status(ours, Status.BUILDING)
            while len(errors) < 1:
                await trio.lowlevel.checkpoint()
        build = await world.wait_end(ours)
        assert (build.status, build.attempt) == (Status.READY, 2)
        assert errors == ["build.actor_crashed"]
        assert not world.hypervisor.running


async def test_a_build_whose_log_cannot_be_opened_is_tried_again_when_the_host_works(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, errors: list[str], autojump_clock: MockClock
) -> None:
    def refuse(_: BuildLog) -> None:
        raise HostError("the log cannot be opened: Too many open files")

    async with open_world(data_dir) as world:
        run = build_module.BuildActor.run

        async def run_on_a_poor_host(actor: build_module.BuildActor) -> None:
            with monkeypatch.context() as poor:
                poor.setattr(BuildLog, "open_sync", refuse)
                await run(actor)

        with monkeypatch.context() as poor:
            poor.setattr(build_module.BuildActor, "run", run_on_a_poor_host)
            ours = await world.submit()
            while not errors:
                await trio.lowlevel.checkpoint()
        build = await world.wait_end(ours)
        assert (build.status, build.attempt) == (Status.READY, 2)
        assert errors == ["build.not_begun"]


async def test_an_actor_that_always_crashes_loses_the_build_and_nothing_else(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, errors: list[str], autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(build_module.BuildActor, "_greet", crash)
    async with open_world(data_dir) as world:
        ours, other = await world.submit(), await world.submit()
        for each in (ours, other):
            build = await world.wait_end(each)
            assert (build.status, build.error_code) == (Status.FAILED, Reason.BUILDER_LOST)
            assert build.attempt == MAX_LOST_ATTEMPTS
        assert errors == ["build.actor_crashed"] * 2 * MAX_LOST_ATTEMPTS
        assert not world.runner.running


async def test_an_actor_that_crashes_while_a_cancellation_is_wanted_cancels(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, errors: list[str], autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(build_module.BuildActor, "_conclude", crash)
    working = Working()
    async with open_world(data_dir, hypervisor=FakeHypervisor(agent(working))) as world:
        ours = await world.submit()
        await working.is_building.wait()
        await world.builds.cancel(ours)
        assert (await world.wait_end(ours)).status is Status.CANCELLED
        assert errors == ["build.actor_crashed"]


async def test_a_verdict_that_takes_too_long_to_store_does_not_hold_the_slot(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, errors: list[str], autojump_clock: MockClock
) -> None:
    async def hang(*_: Any) -> None:
        await trio.sleep_forever()

    async with open_world(data_dir) as world:
        with monkeypatch.context() as slow:
            slow.setattr(build_module.BuildActor, "_conclude", hang)
            ours = await world.submit()
            await world.wait_status(ours, Status.PUSHING)
            await trio.sleep(build_module.CONCLUDE_SECONDS - 1)
        build = await world.wait_end(ours)
        assert (build.status, build.attempt) == (Status.READY, 2)
        assert errors == ["build.verdict_not_stored"]


async def test_a_slot_is_held_exactly_until_the_machine_is_gone(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ours = await world.submit()
        await world.wait_status(ours, Status.BUILDING)
        while ours in world.runner.running:
            await trio.lowlevel.checkpoint()
            held = ours in world.runner.running
            assert held or not world.hypervisor.running
        assert (await world.builds.get(ours)).status is Status.READY


async def test_done_is_called_once_for_each_start_when_the_slot_is_free(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    done: list[tuple[str, bool]] = []

    async with open_world(data_dir) as world:

        async def note(build_id: str) -> None:
            done.append((build_id, build_id in world.runner.running))

        build = a_build(status=Status.BUILDING, attempt=1)
        world.ledger.source_path(build.id).parent.mkdir(parents=True)
        world.ledger.source_path(build.id).write_bytes(b"not really an archive")
        await world.ledger.enter(build)
        world.runner.start_nowait(build, note)
        with pytest.raises(AssertionError, match="runs already"):
            world.runner.start_nowait(build, note)
        await world.wait_end(build.id)
        await trio.testing.wait_all_tasks_blocked()
    assert done == [(build.id, False)]


async def test_draining_what_is_idle_returns_at_once(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        began = trio.current_time()
        await world.runner.drain(30)
        assert trio.current_time() == began


async def test_interrupting_cuts_the_grace_short(data_dir: Path, autojump_clock: MockClock) -> None:
    working = Working()
    async with open_world(data_dir, hypervisor=FakeHypervisor(agent(working))) as world:
        ours = await world.submit()
        await working.is_building.wait()
        await world.queue.drain()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.runner.drain, 3600)
            await trio.testing.wait_all_tasks_blocked()
            world.runner.interrupt()
        assert trio.current_time() - began < 10
        assert (await world.builds.get(ours)).status is Status.QUEUED


async def test_the_death_of_the_daemon_leaves_no_machine_and_a_build_that_goes_on(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    working = Working()
    fake = FakeHypervisor(agent(working))
    async with open_world(data_dir, hypervisor=fake) as world:
        ours = await world.submit()
        await working.is_building.wait()
    assert not fake.running
    async with open_world(data_dir, hypervisor=FakeHypervisor(agent(succeed))) as world:
        build = await world.wait_end(ours)
        assert (build.status, build.attempt) == (Status.READY, 2)
        assert statuses(await world.events(ours)).count("building") == 2


async def test_an_end_that_a_crash_kept_from_being_told_is_told_at_the_next_start(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ours = await world.submit()
        told = await world.wait_end(ours)
        directory = world.ledger.directory(ours)
    events = directory / "logs" / "events.jsonl"
    lines = events.read_bytes().splitlines(keepends=True)
    events.write_bytes(b"".join(lines[:-1]))
    (directory / "metadata.json").write_text('{"status": "pushing"}')
    (directory / ".metadata.json.tmp").write_text('{"sta')
    async with open_world(data_dir):
        pass
    assert told.status is Status.READY
    assert events.read_bytes().splitlines(keepends=True) == lines
    assert json.loads((directory / "metadata.json").read_text())["status"] == "ready"
    assert not (directory / ".metadata.json.tmp").exists()


async def test_a_description_that_the_disk_refused_is_written_at_the_next_start(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        ours = await world.submit()
        await world.wait_end(ours)
        description = world.ledger.directory(ours) / "metadata.json"
    told = description.read_bytes()
    description.write_text('{"status": "pushing"}')  # the log is final, this came to nothing
    async with open_world(data_dir):
        pass
    assert description.read_bytes() == told
