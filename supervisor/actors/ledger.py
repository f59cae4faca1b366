"""The one way in which a build's status changes: decide, make durable, then show.

Both the queue (for builds that wait) and a build's own actor (while it runs) go through here; at
any moment exactly one of them owns a build.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from supervisor.errors import HostError
from supervisor.model import lifecycle
from supervisor.model.build import Build
from supervisor.model.events import status_event
from supervisor.model.ids import BuildId
from supervisor.model.times import rfc3339
from supervisor.runtime.clock import Clock
from supervisor.runtime.files import remove_tree_sync, write_atomically_sync
from supervisor.runtime.logs import log
from supervisor.runtime.threads import Threads, run_in_thread
from supervisor.store import builds
from supervisor.store.database import Database
from supervisor.store.eventlog import BuildLog, BuildLogs
from supervisor.store.idempotency import IdempotencyKey, insert_build_once


class Ledger:
    """The durable record of builds: database, event log, and a file for people."""

    def __init__(
        self,
        database: Database,
        logs: BuildLogs,
        builds_dir: Path,
        threads: Threads,
        clock: Clock,
        on_end: Callable[[Build], None] = lambda build: None,
    ) -> None:
        self.database = database
        self.logs = logs
        self.clock = clock
        self._builds_dir = builds_dir
        self.threads = threads
        self._on_end = on_end

    def directory(self, build_id: BuildId) -> Path:
        """Return the directory that holds everything of a build."""
        return self._builds_dir / build_id

    def source_path(self, build_id: BuildId) -> Path:
        """Return where the uploaded archive of a build is."""
        return self.directory(build_id) / "source" / "source.tar.gz"

    async def enter(self, build: Build, key: IdempotencyKey | None = None) -> Build:
        """Record a new build, and return it. It will reach a final status, come what may.

        A `key` that has made a build before returns that one, and nothing is recorded. The row
        comes last: nobody can see the files before it. Raises HostError, with nothing recorded, if
        the disk or the database refuses, and Conflict if `key` made another build.
        """
        await self._publish(build)
        return await self.database.run(insert_build_once, build, key)

    async def apply(self, build: Build, event: lifecycle.Event) -> Build:
        """Return `build` after `event`, durable and announced. No-op on a final build.

        An announcement that cannot be written is logged and made up for by `repair`: the database
        is what counts.
        """
        after = lifecycle.step(build, event, self.clock())
        if after == build:
            return build
        await self.database.run(builds.update_build, after)
        if after.status.is_final:
            self._on_end(after)
        if after.status is not build.status:
            try:
                await self._publish(after)
            except HostError as exc:
                log.error("build.announcement_failed", build_id=build.id, why=exc.message)
        return after

    async def repair(self, build: Build, events: BuildLog) -> None:
        """Announce a final status that a crash or a full disk kept from being announced.

        Whoever is about to announce it may be overtaken: a log takes one final status only. If it
        cannot be written even now, that is logged, and the log is abandoned.
        """
        if not build.status.is_final or events.is_final:
            return
        try:
            await self._announce(build, events)
        except HostError as exc:
            log.error("build.announcement_failed", build_id=build.id, why=exc.message)

    async def forget(self, build_id: BuildId) -> None:
        """Remove a build: its row first, so that nothing ever points at missing files."""
        await self.database.run(builds.delete_build, build_id)
        await self.discard(build_id)

    async def discard(self, build_id: BuildId) -> None:
        """Remove the files of a build that is not, or no longer, recorded."""
        await run_in_thread(self.threads.disk, remove_tree_sync, self.directory(build_id))

    async def _publish(self, build: Build) -> None:
        facts = {"build_id": build.id, "tenant": build.tenant, "attempt": build.attempt}
        if build.error_code:
            facts["error_code"] = build.error_code
        log.info(f"build.{build.status}", **facts)
        async with self.logs.open(build.id) as events:
            await self._announce(build, events)
        await run_in_thread(self.threads.disk, self._write_metadata_sync, build)

    async def _announce(self, build: Build, events: BuildLog) -> None:
        moment = self.clock() if build.completed_at is None else build.completed_at
        text = f"[{build.status}]" + (f" {build.error}" if build.error else "") + "\n"
        try:
            await events.append([status_event(rfc3339(moment), build)], text.encode())
            if build.status.is_final:
                await events.sync()
        except HostError:
            if build.status.is_final:
                events.abandon()
            raise

    def _write_metadata_sync(self, build: Build) -> None:
        """Write metadata.json for people and scripts; the database is what counts."""
        shown = {
            "id": build.id,
            "tenant": build.tenant,
            "status": build.status,
            "attempt": build.attempt,
            "created_at": rfc3339(build.created_at),
            "source_hash": f"sha256:{build.source.sha256}",
            "image_digest": build.image_digest,
            "error_code": build.error_code,
            "error": build.error,
        }
        present = {key: value for key, value in shown.items() if value is not None}
        path = self.directory(build.id) / "metadata.json"
        try:
            write_atomically_sync(path, json.dumps(present, indent=2).encode() + b"\n")
        except OSError as exc:
            raise HostError(f"{path.name} cannot be written: {exc.strerror}") from exc
