"""The root of the actors: starts them in order, keeps the permanent ones running, stops in reverse.

    registry ⊃ pool ⊃ builds ⊃ queue, retention

The queue starts builds, and builds use machines and the registry, so each is started after what it
needs and stopped before it. Starting is recovering: there is no other way to come up.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from supervisor.actors import queue
from supervisor.actors.build import BuildDeps
from supervisor.actors.builds import BuildService, sweep_uploads
from supervisor.actors.contact import ContactTimes
from supervisor.actors.gauges import watch_actors
from supervisor.actors.grants import grants_of
from supervisor.actors.hostports import GuestPort
from supervisor.actors.images import ImageService
from supervisor.actors.ledger import Ledger
from supervisor.actors.operator import OperatorService
from supervisor.actors.pool import Pool, PoolActor, PoolDeps
from supervisor.actors.pool_plan import PoolLimits
from supervisor.actors.queue import QueueActor, QueueHandle, QueueLimits
from supervisor.actors.registry import RegistryActor
from supervisor.actors.retention import RetentionActor, RetentionPolicy
from supervisor.actors.runner import BuildRunner
from supervisor.actors.schedule import Capacity
from supervisor.config import Settings, load_ca_certificates
from supervisor.egress.policy import EgressLimits, EgressPolicy
from supervisor.egress.proxy import OnDecision, serve_egress
from supervisor.egress.resolver import host_resolver
from supervisor.egress.routes import host_address_rule
from supervisor.model.build import Build, Policy
from supervisor.model.host import HostFacts
from supervisor.model.ids import BuildId, IdSource, Tenant
from supervisor.runtime.clock import Clock
from supervisor.runtime.logs import log
from supervisor.runtime.mailbox import Mailbox
from supervisor.runtime.metrics import Metrics
from supervisor.runtime.supervise import RestartPolicy, supervise
from supervisor.runtime.threads import Threads
from supervisor.store import builds
from supervisor.store.database import Database
from supervisor.store.eventlog import BuildLogs
from supervisor.tokens import mint_registry_token
from supervisor.vm.machine import Hypervisor, wait_connect

DAY = 86_400.0
PERMANENT = RestartPolicy(intensity=3, period_seconds=60.0)
"""Enough for a burst of bad luck; a fault that stays takes the daemon down within seconds."""


@dataclass(frozen=True)
class RootDeps:
    """What the root is given: everything outside the tower of actors."""

    settings: Settings
    database: Database
    threads: Threads
    clock: Clock
    hypervisor: Hypervisor
    builder_image_digest: str
    registry: RegistryActor
    registry_secret: bytes
    serve_registry: Callable[[GuestPort], Awaitable[None]]
    why_not_ready: Callable[[], str | None]
    facts: HostFacts
    metrics: Metrics
    on_end: Callable[[Build], None]
    """Told of each build that has just got its final status."""


@dataclass(frozen=True)
class System:
    """The running actors, as the edge of the daemon sees them."""

    builds: BuildService
    images: ImageService
    operator: OperatorService
    queue: QueueHandle
    runner: BuildRunner
    pool: Pool

    async def drain(self, grace_seconds: float) -> None:
        """Start no more builds; let the running ones finish, or put them back into the queue."""
        await self.queue.drain()
        self.pool.drain()
        await self.runner.drain(grace_seconds)


class RootActor:
    """Owns all actors. `run` is the task; cancel it after `System.drain`."""

    def __init__(self, deps: RootDeps) -> None:
        self._deps = deps
        self._builds_dir = deps.settings.data_dir / "builds"
        logs = BuildLogs(self._builds_dir, deps.threads)
        self._ledger = Ledger(
            deps.database,
            logs,
            self._builds_dir,
            deps.threads,
            deps.clock,
            deps.registry.handle.delete_repository,
            deps.on_end,
        )
        self._address_rule = host_address_rule(deps.settings.egress_allowed_networks)
        self._ca_certificates = load_ca_certificates(deps.settings)
        self._resolver = host_resolver(deps.threads.names)
        self._limits = QueueLimits(
            Capacity(deps.settings.max_concurrent_source_builds, deps.settings.tenant_capacity),
            deps.settings.max_queued_builds,
        )

    async def run(self, *, task_status: trio.TaskStatus[System]) -> None:
        """Recover, start everything, hand it out, and keep it until cancelled.

        Raises RestartLimitExceeded when a permanent actor keeps failing.
        """
        registry = self._deps.registry
        mailbox: Mailbox[queue.Message] = Mailbox()
        try:
            async with trio.open_nursery() as registry_nursery:
                await registry_nursery.start(
                    partial(supervise, "registry", registry.run, policy=PERMANENT)
                )
                await self._import_seeds()
                await self._sweep()
                async with (
                    trio.open_nursery() as machines_nursery,
                    trio.open_nursery() as builds_nursery,
                ):
                    pool = Pool(machines_nursery, self._pool_deps())
                    await machines_nursery.start(
                        partial(supervise, "pool", partial(self._run_pool, pool), policy=PERMANENT)
                    )
                    runner = BuildRunner(builds_nursery, self._build_deps(pool))
                    handle = QueueHandle(mailbox, self._limits)
                    actor = partial(self._run_queue, mailbox=mailbox, handle=handle, runner=runner)
                    async with trio.open_nursery() as queue_nursery:
                        await queue_nursery.start(
                            partial(supervise, "queue", actor, policy=PERMANENT)
                        )
                        await queue_nursery.start(
                            partial(supervise, "retention", self._retention, policy=PERMANENT)
                        )
                        watch_actors(self._deps.metrics, handle, runner, pool)
                        newest = await self._deps.database.run(builds.newest_id)
                        task_status.started(self._system(handle, runner, pool, IdSource(newest)))
        finally:
            mailbox.close()
            registry.close()

    async def _run_queue(
        self,
        *,
        mailbox: Mailbox[queue.Message],
        handle: QueueHandle,
        runner: BuildRunner,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Run a fresh queue actor: one that failed has no state that is worth keeping."""
        actor = QueueActor(mailbox, handle, self._ledger, runner, self._limits)
        await actor.run(task_status=task_status)

    async def _run_pool(self, pool: Pool, *, task_status: trio.TaskStatus[None]) -> None:
        """Run a fresh pool actor: the machines are the pool's, and outlive it."""
        await PoolActor(pool, self._pool_limits()).run(task_status=task_status)

    async def _retention(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Remove what is kept no longer, for ever."""
        settings = self._deps.settings
        policy = RetentionPolicy(
            settings.build_retention_days * DAY, settings.build_retention_count
        )
        await RetentionActor(self._ledger, policy).run(task_status=task_status)

    def _system(
        self, handle: QueueHandle, runner: BuildRunner, pool: Pool, ids: IdSource
    ) -> System:
        deps, settings = self._deps, self._deps.settings
        return System(
            BuildService(self._ledger, handle, runner, ids, deps.why_not_ready),
            ImageService(
                deps.registry,
                deps.database,
                deps.threads,
                self._ledger.source_path,
                data_dir=settings.data_dir,
                images_dir=settings.effective_images_dir,
            ),
            OperatorService(self._ledger, handle, runner, self._limits, pool, deps.facts, settings),
            handle,
            runner,
            pool,
        )

    def _pool_limits(self) -> PoolLimits:
        settings = self._deps.settings
        return PoolLimits(
            size=settings.pool_size,
            capacity=settings.max_concurrent_source_builds,
            machine_cpus=settings.build_cpus,
            host_cpus=len(os.sched_getaffinity(0)),
            max_age_seconds=settings.pool_machine_max_age,
        )

    def _pool_deps(self) -> PoolDeps:
        deps, settings = self._deps, self._deps.settings
        return PoolDeps(
            hypervisor=deps.hypervisor,
            dial=wait_connect,
            times=ContactTimes(settings.boot_timeout, settings.link_silence),
            limits=self._pool_limits(),
            memory_mb=settings.build_memory_mb,
            clock=deps.clock,
        )

    def _build_deps(self, pool: Pool) -> BuildDeps:
        deps = self._deps
        return BuildDeps(
            settings=deps.settings,
            ledger=self._ledger,
            machines=pool,
            registry=deps.registry.handle,
            builder_image_digest=deps.builder_image_digest,
            mint_registry_token=self._mint_token,
            serve_registry=deps.serve_registry,
            serve_egress=self._serve_egress,
            dial=wait_connect,
            ca_certificates=self._ca_certificates,
        )

    def _mint_token(self, build: Build, lifetime_seconds: float) -> str:
        return mint_registry_token(
            self._deps.registry_secret,
            subject=f"builder-{build.id}",
            build_id=build.id,
            grants=grants_of(build),
            now=self._deps.clock(),
            lifetime_seconds=lifetime_seconds,
        )

    async def _serve_egress(self, port: GuestPort, policy: Policy, on_decision: OnDecision) -> None:
        ports = self._deps.settings.egress_ports
        await serve_egress(
            port,
            EgressPolicy.from_build(policy, self._address_rule, ports),
            EgressLimits.from_settings(self._deps.settings),
            self._resolver,
            on_decision,
        )

    async def _sweep(self) -> None:
        """Remove what an earlier daemon left when it was killed."""
        machines = await self._deps.hypervisor.sweep()
        uploads = await sweep_uploads(self._ledger, self._builds_dir)
        if machines or uploads:
            log.info("daemon.swept", machines=machines, uploads=uploads)

    async def _import_seeds(self) -> None:
        """Import the operator's image layouts; those that are there already cost one look each."""
        directory = self._deps.settings.seed_images_dir
        if directory is None:
            return
        for layout in await trio.to_thread.run_sync(_layouts_sync, directory):
            for name in await self._deps.registry.handle.import_layout(layout):
                log.info("registry.seeded", image=name)


async def tenant_of_build(database: Database, build_id: BuildId) -> Tenant | None:
    """Return whose a build is: the registry asks on each access to `builds/{id}`."""
    return await database.run(builds.get_tenant, build_id)


def _layouts_sync(directory: Path) -> list[Path]:
    return sorted(path.parent for path in directory.glob("*/oci-layout"))
