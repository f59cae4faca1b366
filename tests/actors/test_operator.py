"""What an operator sees of the running daemon is what the actors do."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from supervisor.actors.operator import OperatorService
from supervisor.actors.queue import QueueLimits
from supervisor.actors.schedule import Capacity
from supervisor.model.build import Status
from supervisor.model.host import HostFacts, MachinePhase
from supervisor.model.ids import Tenant, machine_id
from tests.actors.world import World, open_world
from tests.fakes.agent import agent, fall_silent
from tests.fakes.hypervisor import FakeHypervisor

FACTS = HostFacts(0.0, "qemu", "q35/tcg", "builder:latest", f"sha256:{'b' * 64}", {})


def operator(world: World) -> OperatorService:
    return OperatorService(
        world.ledger, world.queue, world.runner, QueueLimits(Capacity(1, 1), 10), world.pool,
        FACTS, world.settings,
    )  # fmt: skip


async def test_the_queue_is_what_runs_and_then_what_waits(tmp_path: Path) -> None:
    hypervisor = FakeHypervisor(agent(fall_silent))
    with trio.fail_after(30):
        async with open_world(
            tmp_path, hypervisor=hypervisor, max_concurrent_source_builds=1
        ) as world:
            first, second = await world.submit("acme"), await world.submit("acme")
            third = await world.submit("rival")
            await world.wait_status(first, Status.BUILDING)
            state = await operator(world).queue(None)
            assert [build.id for build in state.running] == [first]
            assert [build.id for build in state.waiting] == [third, second], "fair, not by age"
            assert not state.is_draining
            own = await operator(world).queue(Tenant("acme"))
            assert [build.id for build in own.waiting] == [second]
            assert operator(world).queue_position(own.waiting[0]) == 2
            counts = await operator(world).count_builds()
            assert (counts[Status.BUILDING], counts[Status.QUEUED], counts[Status.READY]) == (
                1,
                2,
                0,
            )


async def test_of_many_that_wait_those_are_shown_that_start_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.actors.operator.MAX_SHOWN", 2)
    hypervisor = FakeHypervisor(agent(fall_silent))
    with trio.fail_after(30):
        async with open_world(
            tmp_path, hypervisor=hypervisor, max_concurrent_source_builds=1
        ) as world:
            first, *own = [await world.submit("acme") for _ in range(4)]
            foreign = await world.submit("rival")
            await world.wait_status(first, Status.BUILDING)
            state = await operator(world).queue(None)
            assert [build.id for build in state.waiting] == [foreign, own[0]]
            state = await operator(world).queue(Tenant("acme"))
            assert [build.id for build in state.waiting] == own[:2]


async def test_machines_are_those_of_builds_and_those_of_the_pool(tmp_path: Path) -> None:
    hypervisor = FakeHypervisor(agent(fall_silent))
    with trio.fail_after(30):
        async with open_world(tmp_path, hypervisor=hypervisor, pool_size=1) as world:
            build_id = await world.submit("acme")
            build = await world.wait_status(build_id, Status.BUILDING)
            found = await operator(world).machines()
            running = [each for each in found if each.build_id is not None]
            assert [(each.build_id, each.tenant) for each in running] == [(build_id, "acme")]
            assert running[0].phase is MachinePhase.BUILDING
            asked = machine_id(build_id, build.attempt)
            assert running[0].id == world.pool.machine_of(asked)
            waiting = [each for each in found if each.build_id is None]
            assert {each.phase for each in waiting} <= {MachinePhase.IDLE, MachinePhase.BOOTING}
            assert len(waiting) == len(world.pool.state.waiting)


async def test_the_hosts_load_is_measured(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        load = await operator(world).load()
    assert load.cpus >= 1
    assert 0 < load.memory_available_bytes <= load.memory_bytes
    assert 0 <= load.disk_free_bytes <= load.disk_bytes
