"""What an operator asks of the running daemon: its queue, its machines, its host.

Reads only. A running build has exactly one machine, so what is stored of the one tells the other;
the pool tells of those that wait for a build.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import trio

from supervisor.actors.ledger import Ledger
from supervisor.actors.pool import Pool
from supervisor.actors.queue import QueueHandle, QueueLimits
from supervisor.actors.runner import BuildRunner
from supervisor.config import Settings
from supervisor.model.build import Build, Status
from supervisor.model.host import HostFacts, HostLoad, MachinePhase, MachineState, QueueState
from supervisor.model.ids import Tenant, machine_id
from supervisor.runtime.threads import run_in_thread
from supervisor.store.builds import BuildFilter, count_by_status, list_builds, pick_queued
from supervisor.vm.usage import MachineUsage, measure_machines_sync

MAX_SHOWN = 1000
"""Waiting builds in one answer; the rest are further from starting."""
_MEMINFO = Path("/proc/meminfo")


class OperatorService:
    """The running daemon, to look at."""

    def __init__(
        self,
        ledger: Ledger,
        queue: QueueHandle,
        runner: BuildRunner,
        limits: QueueLimits,
        pool: Pool,
        facts: HostFacts,
        settings: Settings,
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._runner = runner
        self._limits = limits
        self.facts = facts
        self._pool = pool
        self._settings = settings

    async def queue(self, tenant: Tenant | None) -> QueueState:
        """Return what runs and waits: a tenant's own, or everybody's."""
        running = await self._list(tenant, Status.BUILDING) + await self._list(
            tenant, Status.PUSHING
        )
        waiting = await self._ledger.database.run(
            pick_queued, self._queue.waiting, tenant, MAX_SHOWN
        )
        return QueueState(
            capacity=self._limits.capacity.total,
            tenant_capacity=self._limits.capacity.per_tenant,
            max_queued=self._limits.max_queued,
            is_draining=self._queue.is_draining,
            running=sorted(running, key=lambda build: build.started_at or 0.0),
            waiting=waiting,
        )

    def queue_position(self, build: Build) -> int | None:
        """Return the 1-based position of a waiting build."""
        return self._queue.position(build.id)

    async def machines(self) -> list[MachineState]:
        """Return the machines of running builds, the oldest first, and then those of the pool."""
        builds = (await self.queue(None)).running
        used = await run_in_thread(
            self._ledger.threads.disk,
            measure_machines_sync,
            self._settings.runtime_dir / "machines",
        )
        running = [
            MachineState(
                id=self._pool.machine_of(machine_id(build.id, build.attempt)),
                phase=MachinePhase(build.status),
                cpus=build.request.policy.cpus,
                memory_mb=build.request.policy.memory_mb,
                since=build.started_at or build.created_at,
                build_id=build.id,
                tenant=build.tenant,
            )
            for build in builds
            if build.id in self._runner.running
        ]
        now, ticks = self._ledger.clock(), trio.current_time()
        waiting = [
            MachineState(
                id=each.id,
                phase=MachinePhase.IDLE if each.is_up else MachinePhase.BOOTING,
                cpus=self._settings.build_cpus,
                memory_mb=self._settings.build_memory_mb,
                since=now - (ticks - each.since),
            )
            for each in self._pool.state.waiting
        ]
        return [_with_usage(machine, used.get(machine.id)) for machine in running + waiting]

    async def count_builds(self) -> Mapping[Status, int]:
        """Return how many builds there are of each status."""
        return await self._ledger.database.run(count_by_status)

    async def load(self) -> HostLoad:
        """Return how busy the host is."""
        return await run_in_thread(self._ledger.threads.disk, self._load_sync)

    async def _list(self, tenant: Tenant | None, status: Status) -> list[Build]:
        wanted = BuildFilter(MAX_SHOWN, tenant=tenant, status=status)
        return await self._ledger.database.run(list_builds, wanted)

    def _load_sync(self) -> HostLoad:
        disk = os.statvfs(self._settings.data_dir)
        memory = _read_meminfo_sync(_MEMINFO)
        return HostLoad(
            cpus=os.cpu_count() or 1,
            load_average=os.getloadavg()[0],
            memory_bytes=memory.get("MemTotal", 0),
            memory_available_bytes=memory.get("MemAvailable", 0),
            disk_bytes=disk.f_blocks * disk.f_frsize,
            disk_free_bytes=disk.f_bavail * disk.f_frsize,
        )


def _with_usage(machine: MachineState, used: MachineUsage | None) -> MachineState:
    return machine if used is None else replace(machine, pid=used.pid, rss_bytes=used.rss_bytes)


def _read_meminfo_sync(path: Path) -> dict[str, int]:
    """Return the lines of /proc/meminfo in bytes."""
    found = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[-1] == "kB":
            found[name] = int(words[0]) * 1024
    return found
