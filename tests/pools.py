"""A pool of machines on any hypervisor, for the suites that test it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import Any

import trio

from supervisor.actors.contact import ContactTimes
from supervisor.actors.pool import Lease, MachineCounts, Pool, PoolActor, PoolDeps, Waits
from supervisor.actors.pool_plan import PoolLimits
from supervisor.model.ids import MachineId
from supervisor.runtime.clock import wall_clock
from supervisor.runtime.supervise import RestartPolicy, supervise
from supervisor.vm.machine import Hypervisor, MachineSpec, wait_connect

CPUS = 2
MEMORY_MB = 2048
LONGEST_SECONDS = 10_000.0
"""Idle machines talk for ever, so that a test that waits in vain would never end."""


def spec(name: str = "build-1", *, cpus: int = CPUS, memory_mb: int = MEMORY_MB) -> MachineSpec:
    """Return what a build asks for; by itself the pool's shape."""
    return MachineSpec(MachineId(name), cpus, memory_mb)


@asynccontextmanager
async def open_pool(
    hypervisor: Hypervisor,
    *,
    boot_timeout: float = 120.0,
    **limits: Any,
) -> AsyncIterator[Pool]:
    """Run a pool of one machine, unless `limits` say otherwise, on a host with room for it."""
    numbers: dict[str, Any] = {
        "size": 1,
        "capacity": 4,
        "machine_cpus": CPUS,
        "host_cpus": 64,
        "max_age_seconds": 3600.0,
        **limits,
    }
    its_limits = PoolLimits(**numbers)
    deps = PoolDeps(
        hypervisor,
        wait_connect,
        ContactTimes(boot_timeout, link_silence=60.0),
        its_limits,
        MEMORY_MB,
        wall_clock,
    )
    with trio.fail_after(LONGEST_SECONDS):
        async with trio.open_nursery() as nursery:
            pool = Pool(nursery, deps)
            actor = PoolActor(pool, its_limits)
            await nursery.start(partial(supervise, "pool", actor.run, policy=RestartPolicy()))
            yield pool
            nursery.cancel_scope.cancel(reason="the daemon dies")


@asynccontextmanager
async def leased(
    pool: Pool, wanted: MachineSpec, waiting: Waits = nullcontext
) -> AsyncIterator[Lease]:
    """Lease a machine as a build does, for the length of the block."""
    async with trio.open_nursery() as nursery:
        lease: Lease = await nursery.start(pool.lease, wanted, waiting)
        try:
            yield lease
        finally:
            if lease.contact is not None:
                await lease.contact.link.aclose()
            nursery.cancel_scope.cancel(reason="the build is over")


async def wait_counts(pool: Pool, *, booting: int = 0, idle: int = 0, leased: int = 0) -> None:
    """Wait until there are so many machines."""
    while pool.counts != MachineCounts(booting, idle, leased):
        await pool.wait_change()
