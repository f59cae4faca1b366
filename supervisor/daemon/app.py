"""The composition root: everything the daemon is made of, in the order in which it needs itself.

    signals ⊃ lock ⊃ traces ⊃ store ⊃ hypervisor
        ⊃ actors (registry ⊃ pool ⊃ builds ⊃ queue) ⊃ listeners

Leaving the blocks is the shutdown order; there is no other shutdown sequence.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import AsyncIterator
from functools import partial

import trio

from supervisor.actors.registry import RegistryActor
from supervisor.actors.registry_handle import DAY, CollectionPolicy
from supervisor.actors.root import RootActor, RootDeps, System, tenant_of_build
from supervisor.api.front import ASGIApp
from supervisor.api.listeners import serve_api, serve_registry_to_guest
from supervisor.api.metrics import serve_metrics
from supervisor.api.ports import ApiDeps
from supervisor.config import Keys, Settings, load_keys
from supervisor.daemon.intact import refuse_lost_database
from supervisor.daemon.lock import hold_lock, prepare_directories
from supervisor.daemon.mirroring import mirror_config
from supervisor.daemon.tracing import TellEnd, open_tracing
from supervisor.errors import ConfigError
from supervisor.images.lookup import find_builder_image
from supervisor.model.build import Build
from supervisor.model.host import HostFacts
from supervisor.registry.app import Registry
from supervisor.runtime.activation import PassedSockets, take_sockets
from supervisor.runtime.clock import wall_clock
from supervisor.runtime.logs import log
from supervisor.runtime.metrics import Metrics
from supervisor.runtime.notify import keep_watchdog_fed, notify
from supervisor.runtime.threads import Threads
from supervisor.store.database import Database, open_database
from supervisor.vm.qemu import QemuConfig, QemuHypervisor, start_hypervisor

MIN_FREE_BYTES = 512 << 20
"""With less room on the data directory's disk no build could store its image."""


async def run_daemon(settings: Settings) -> None:
    """Run the daemon until it is told to stop.

    Raises ConfigError if it cannot start as configured, alone or in an exception group.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        passed = take_sockets()
        keys = _require_keys(settings, passed)
        prepare_directories(settings)
        async with (
            hold_lock(settings.data_dir, "DATA_DIR"),
            hold_lock(settings.runtime_dir, "RUNTIME_DIR"),
            trio.open_nursery() as nursery,
        ):
            daemon = _Daemon(settings, keys, passed)
            nursery.start_soon(keep_watchdog_fed)
            nursery.start_soon(daemon.obey, signals, nursery.cancel_scope)
            await daemon.run()
            nursery.cancel_scope.cancel(reason="the daemon has stopped")
    log.info("daemon.stopped")


class _Daemon:
    """One run of the daemon, from the open database to the last goodbye."""

    def __init__(self, settings: Settings, keys: Keys, passed: PassedSockets) -> None:
        self._settings = settings
        self._keys = keys
        self._passed = passed
        self._port = settings.port
        """Where the API is on TCP: with PORT=0, or a socket that was passed, known once it is."""
        self._threads = Threads()
        self._metrics = Metrics()
        self._trace: TellEnd
        self._system: System | None = None
        self._stopped = trio.Event()

    async def run(self) -> None:
        """Bring everything up, wait for the end of `obey`, and take everything down."""
        settings = self._settings
        notify("STATUS=Starting: recovering what an earlier run has left.")
        async with (
            open_tracing(settings.otel_exporter_otlp_endpoint) as self._trace,
            open_database(
                settings.data_dir / "hypeman.db",
                before_new=partial(refuse_lost_database, settings.data_dir),
            ) as database,
        ):
            image = find_builder_image(settings.effective_images_dir, settings.builder_image)
            hypervisor = await start_hypervisor(
                QemuConfig(
                    runtime_dir=settings.runtime_dir,
                    data_dir=settings.data_dir,
                    image=image,
                    accelerator=settings.accelerator,
                    stop_grace=settings.machine_stop_grace,
                    probe_timeout=settings.probe_timeout,
                ),
                self._threads.disk,
            )
            facts = HostFacts(
                started_at=wall_clock(),
                hypervisor=settings.hypervisor,
                platform=str(hypervisor.platform),
                builder_image=image.reference,
                builder_image_digest=image.digest,
                components=image.components,
            )
            await self._run_actors(database, hypervisor, facts)

    async def _run_actors(
        self, database: Database, hypervisor: QemuHypervisor, facts: HostFacts
    ) -> None:
        settings = self._settings
        registry = RegistryActor(
            database,
            settings.data_dir / "registry",
            self._threads,
            wall_clock,
            CollectionPolicy(mirror_seconds=settings.mirror_retention_days * DAY),
            mirror_config(settings, self._threads),
        )
        web = Registry(
            facts=registry.handle,
            mirror=registry.mirror,
            store=registry.store,
            sound=registry.sound,
            uploads=registry.uploads,
            keys=self._keys,
            tenant_of_build=partial(tenant_of_build, database),
            clock=wall_clock,
            fallback_host=self._public_registry,
            count_bytes=self._metrics.count_registry_bytes,
        )
        root = RootActor(
            RootDeps(
                settings=settings,
                database=database,
                threads=self._threads,
                clock=wall_clock,
                hypervisor=hypervisor,
                builder_image_digest=facts.builder_image_digest,
                registry=registry,
                registry_secret=self._keys.registry,
                serve_registry=partial(serve_registry_to_guest, registry=web),
                why_not_ready=self._why_not_ready,
                facts=facts,
                metrics=self._metrics,
                on_end=self._on_end,
            )
        )
        async with trio.open_nursery() as nursery:
            self._system = await nursery.start(root.run)
            await self._serve(self._system, web)
            nursery.cancel_scope.cancel(reason="the daemon stops")

    async def _serve(self, system: System, web: ASGIApp) -> None:
        """Be ready, until `obey` has drained the system."""
        deps = ApiDeps(
            builds=system.builds,
            images=system.images,
            operator=system.operator,
            settings=self._settings,
            keys=self._keys,
            threads=self._threads,
            name_registry=self._public_registry,
        )
        readers = deps.log_readers
        self._metrics.watch(
            "hypeman_log_readers", "Clients that read a build's log.", lambda: readers.count
        )
        self._metrics.watch(
            "hypeman_tasks",
            "Tasks of the daemon's event loop.",
            lambda: trio.lowlevel.current_statistics().tasks_living,
        )
        async with trio.open_nursery() as nursery:
            if address := self._settings.metrics_address:
                await nursery.start(serve_metrics, address, self._metrics.registry)
            addresses = await nursery.start(serve_api, deps, web, self._passed)
            if addresses.tcp:
                self._port = addresses.tcp[1]
            notify("READY=1", "STATUS=Ready: builds can start.")
            tcp = "{}:{}".format(*addresses.tcp) if addresses.tcp else "none"
            log.info("daemon.ready", tcp=tcp, unix=addresses.unix)
            await self._stopped.wait()
            nursery.cancel_scope.cancel(reason="the daemon stops")

    async def obey(self, signals: AsyncIterator[int], everything: trio.CancelScope) -> None:
        """Stop gracefully at the first signal, at once at the second."""
        async with trio.open_nursery() as nursery:
            async for number in signals:
                log.info("daemon.signalled", signal=signal.Signals(number).name)
                notify("STOPPING=1", "STATUS=Stopping: running builds may finish.")
                if self._system is None:
                    everything.cancel(reason="stopped before it was up")
                elif self._system.queue.is_draining:
                    notify("STATUS=Stopping: running builds are put back into the queue.")
                    self._system.runner.interrupt()
                else:
                    nursery.start_soon(self._drain, self._system)

    async def _drain(self, system: System) -> None:
        await system.drain(self._settings.drain_grace)
        self._stopped.set()

    def _on_end(self, build: Build) -> None:
        """Count and trace a build. Its end is stored already: no trace is worth an exception."""
        self._metrics.count_end(build)
        try:
            self._trace(build)
        except Exception as exc:
            log.opt(exception=exc).error("tracing.failed", build_id=build.id)

    def _why_not_ready(self) -> str | None:
        disk = os.statvfs(self._settings.data_dir)
        free = disk.f_bavail * disk.f_frsize
        if free < MIN_FREE_BYTES:
            return f"the disk of DATA_DIR has {free >> 20} MiB left; make room"
        return None

    def _public_registry(self) -> str:
        return self._settings.public_registry or f"localhost:{self._port}"


def _require_keys(settings: Settings, passed: PassedSockets) -> Keys:
    """Return the signing keys. Without a TCP listener they may be made up: nobody needs them."""
    keys = load_keys(settings)
    if keys is not None:
        return keys
    if settings.host or passed.tcp:
        raise ConfigError(
            "JWT_SECRET is not set, and the TCP listener needs it: set it (openssl rand -hex 32),"
            " or HOST=none to serve the UNIX socket only"
        )
    return Keys(api=secrets.token_bytes(32), registry=secrets.token_bytes(32))
