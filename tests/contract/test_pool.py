"""The pool on every hypervisor: what its own suite holds against the fake, real machines do too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from agent import wire
from supervisor.actors.pool import Pool
from supervisor.vm.machine import Machine
from tests.contract.harness import FakeHarness, Harness, RealHarness
from tests.fakes.agent import Talk, agent
from tests.machines import path_with_tools, real_image
from tests.pools import leased, open_pool, spec, wait_counts


@pytest.fixture(params=["fake", pytest.param("qemu", marks=pytest.mark.e2e)])
async def builders(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, machines_root: Path
) -> AsyncIterator[Harness]:
    """A hypervisor whose guests run the agent."""
    if request.param == "fake":
        fake = FakeHarness()
        fake.fake.guest = agent(Talk.greet)
        yield fake
        return
    monkeypatch.setenv("PATH", path_with_tools())
    yield await RealHarness.start(machines_root, real_image())


def waiting_machine(pool: Pool) -> Machine:
    (warm,) = pool._waiting.values()
    assert warm.machine is not None
    return warm.machine


async def test_a_machine_that_dies_is_replaced_and_a_healthy_one_lent_and_gone(
    builders: Harness,
) -> None:
    async with open_pool(builders.hypervisor, host_cpus=2) as pool:
        await wait_counts(pool, idle=1)
        dead = waiting_machine(pool)
        builders.kill(dead)
        with trio.fail_after(10):
            await dead.wait_exit()
        while pool.state.failures == 0:
            await pool.wait_change()
        await wait_counts(pool, idle=1)
        async with leased(pool, spec()) as lease:
            assert lease.machine.id != dead.id
            assert lease.contact is not None
            assert lease.contact.hello.protocol == wire.PROTOCOL_VERSION
            # Healthy beyond the probe: it takes orders.
            await lease.contact.link.send(wire.GetStatus())
            while not isinstance(answer := await lease.contact.link.receive(), wire.Status):
                pass
            assert answer.phase == "idle"
            pool.drain()
        assert builders.leftovers() == []
