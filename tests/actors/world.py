"""The actors of a daemon in a directory, with fakes for the machines and the registry.

Leaving the block is the death of the daemon: everything is cancelled at once. Opening another one
on the same directory is its next start.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from supervisor.actors import queue
from supervisor.actors.build import BuildDeps
from supervisor.actors.builds import BuildService, IdempotencyKey, NewBuild
from supervisor.actors.contact import ContactTimes
from supervisor.actors.hostports import GuestPort, ServeEgress
from supervisor.actors.ledger import Ledger
from supervisor.actors.pool import Pool, PoolActor, PoolDeps
from supervisor.actors.pool_plan import PoolLimits
from supervisor.actors.queue import QueueActor, QueueHandle, QueueLimits
from supervisor.actors.runner import BuildRunner
from supervisor.actors.schedule import Capacity
from supervisor.config import Settings, load_settings
from supervisor.egress.proxy import OnDecision
from supervisor.model.build import Build, BuildRequest, Policy, Status
from supervisor.model.events import START, EventId
from supervisor.model.ids import BuildId, IdSource, Tenant
from supervisor.runtime.mailbox import Mailbox
from supervisor.runtime.supervise import RestartPolicy, supervise
from supervisor.runtime.threads import Threads
from supervisor.store.builds import mark_cancel_requested
from supervisor.store.database import Database, open_database
from supervisor.store.eventlog import BuildLogs
from supervisor.vm.machine import wait_connect
from tests.fakes.agent import agent, succeed
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.registry import FakeRegistry
from tests.samples import CREATED_AT, POLICY, SOURCE, SOURCE_BYTES

Event = Mapping[str, Any]


@dataclass
class World:
    """A running set of actors."""

    settings: Settings
    database: Database
    ledger: Ledger
    hypervisor: FakeHypervisor
    registry: FakeRegistry
    deps: BuildDeps
    pool: Pool
    mailbox: Mailbox[queue.Message]
    queue: QueueHandle
    runner: BuildRunner
    builds: BuildService

    async def submit(
        self,
        tenant: str = "acme",
        request: BuildRequest | None = None,
        key: IdempotencyKey | None = None,
    ) -> BuildId:
        """Submit a build with a source; return its id, or that of the one that `key` has made."""
        build_id = self.builds.new_id()
        path = self.builds.upload_path(build_id)
        path.parent.mkdir(parents=True)
        path.write_bytes(SOURCE_BYTES)
        new = NewBuild(build_id, Tenant(tenant), request or BuildRequest(POLICY), SOURCE, key)
        return (await self.builds.submit(new)).id

    async def events(self, build_id: BuildId, after: int = START) -> list[Event]:
        """Follow a build to its end; return all its events."""
        found: list[Event] = []
        async with self.builds.open_events(build_id, after=EventId(after), follow=True) as reader:
            while (batch := await reader.next_batch()) is not None:
                found += [json.loads(event) for _, event in batch.events]
        return found

    async def wait_status(self, build_id: BuildId, wanted: Status) -> Build:
        """Wait until a build is announced to have a status; return it."""
        await self._wait_event(build_id, lambda event: event.get("status") == wanted)
        return await self.builds.get(build_id)

    async def wait_output(self, build_id: BuildId, content: str) -> None:
        """Wait until a build has printed a line."""
        await self._wait_event(build_id, lambda event: event.get("content") == content)

    async def _wait_event(self, build_id: BuildId, is_it: Callable[[Event], bool]) -> None:
        async with self.builds.open_events(build_id, after=START, follow=True) as reader:
            while (batch := await reader.next_batch()) is not None:
                if any(is_it(json.loads(event)) for _, event in batch.events):
                    return
        raise AssertionError(f"build {build_id} ended without that")

    async def wait_end(self, build_id: BuildId) -> Build:
        """Wait until a build has ended, and its slot is free; return it."""
        await self.events(build_id)
        # A slot's release is told to the queue only.
        while build_id in self.runner.running:  # noqa: ASYNC110
            await trio.sleep(0.01)
        return await self.builds.get(build_id)

    async def mark_cancel_requested(self, build_id: BuildId) -> None:
        """Store a wish to cancel that nobody has acted on."""
        await self.database.run(mark_cancel_requested, build_id)


def statuses(events: list[Event]) -> list[str]:
    """Return the statuses that events tell, in order."""
    return [event["status"] for event in events if event["type"] == "status"]


def contents(events: list[Event]) -> list[str]:
    """Return the lines of output that events tell."""
    return [event["content"] for event in events if event["type"] == "log"]


class CountingClock:
    """Wall-clock time that moves a little each time it is asked for."""

    def __init__(self) -> None:
        self._now = CREATED_AT

    def __call__(self) -> float:
        self._now += 0.125
        return self._now


@asynccontextmanager
async def open_world(
    directory: Path,
    *,
    hypervisor: FakeHypervisor | None = None,
    registry: FakeRegistry | None = None,
    wrap_ledger: Callable[[Ledger], Ledger] = lambda ledger: ledger,
    serve_egress: ServeEgress | None = None,
    on_end: Callable[[Build], None] = lambda build: None,
    **settings: Any,
) -> AsyncIterator[World]:
    """Start the actors, as the root does."""
    hypervisor = hypervisor or FakeHypervisor(agent(succeed))
    registry = registry or FakeRegistry()
    effective = load_settings(data_dir=directory, **{"pool_size": 0, **settings})
    builds_dir = directory / "builds"
    builds_dir.mkdir(exist_ok=True)
    threads = Threads()
    limits = QueueLimits(
        Capacity(effective.max_concurrent_source_builds, effective.tenant_capacity),
        effective.max_queued_builds,
    )
    mailbox: Mailbox[queue.Message] = Mailbox()
    handle = QueueHandle(mailbox, limits)
    async with open_database(directory / "hypeman.db") as database:
        logs = BuildLogs(builds_dir, threads)
        ledger = wrap_ledger(
            Ledger(
                database,
                logs,
                builds_dir,
                threads,
                CountingClock(),
                registry.delete_repository,
                on_end,
            )
        )
        pool_limits = PoolLimits(
            size=effective.pool_size,
            capacity=effective.max_concurrent_source_builds,
            machine_cpus=effective.build_cpus,
            host_cpus=effective.build_cpus,
            max_age_seconds=effective.pool_machine_max_age,
        )
        try:
            async with (
                trio.open_nursery() as machines_nursery,
                trio.open_nursery() as builds_nursery,
            ):
                times = ContactTimes(effective.boot_timeout, effective.link_silence)
                pool = Pool(
                    machines_nursery,
                    PoolDeps(
                        hypervisor,
                        wait_connect,
                        times,
                        pool_limits,
                        effective.build_memory_mb,
                        CountingClock(),
                    ),
                )
                deps = BuildDeps(
                    settings=effective,
                    ledger=ledger,
                    machines=pool,
                    registry=registry,
                    builder_image_digest="sha256:" + "cd" * 32,
                    mint_registry_token=registry.mint,
                    serve_registry=registry.serve,
                    serve_egress=serve_egress or serve_nothing,
                    dial=wait_connect,
                )
                runner = BuildRunner(builds_nursery, deps)

                async def run_pool(*, task_status: trio.TaskStatus[None]) -> None:
                    await PoolActor(pool, pool_limits).run(task_status=task_status)

                async def run_queue(*, task_status: trio.TaskStatus[None]) -> None:
                    actor = QueueActor(mailbox, handle, ledger, runner, limits)
                    await actor.run(task_status=task_status)

                await machines_nursery.start(
                    partial(supervise, "pool", run_pool, policy=RestartPolicy())
                )
                await builds_nursery.start(
                    partial(supervise, "queue", run_queue, policy=RestartPolicy())
                )
                yield World(
                    settings=effective,
                    database=database,
                    ledger=ledger,
                    hypervisor=hypervisor,
                    registry=registry,
                    deps=deps,
                    pool=pool,
                    mailbox=mailbox,
                    queue=handle,
                    runner=runner,
                    builds=BuildService(ledger, handle, runner, IdSource(), lambda: None),
                )
                machines_nursery.cancel_scope.cancel(reason="the daemon dies")
        finally:
            mailbox.close()
        assert logs.open_count == 0
    assert not hypervisor.running


async def serve_nothing(port: GuestPort, policy: Policy, on_decision: OnDecision) -> None:
    """Stand in for the proxy: whoever connects waits."""
    await trio.sleep_forever()
