"""The one way in which a build's status changes: decide, make durable, then show.

Both the queue (for builds that wait) and a build's own actor (while it runs) go through here; at
any moment exactly one of them owns a build.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from supervisor.errors import HostError, NotFound, RecordDamaged
from supervisor.model import lifecycle
from supervisor.model.build import Build, Status
from supervisor.model.events import status_event
from supervisor.model.ids import BuildId
from supervisor.model.oci import RepositoryName
from supervisor.model.times import rfc3339
from supervisor.runtime.clock import Clock
from supervisor.runtime.files import remove_tree_sync, write_atomically_sync
from supervisor.runtime.logs import log
from supervisor.runtime.mailbox import ActorGone
from supervisor.runtime.threads import Threads, run_in_thread
from supervisor.store import builds
from supervisor.store.database import Database
from supervisor.store.eventlog import BuildLog, BuildLogs
from supervisor.store.idempotency import IdempotencyKey, find_made_by, insert_build

REMOVE_SECONDS = 3.0
"""For removing what a build without an image has pushed: its end is stored all the same."""
RECENT_BUILDS = 64
"""At most so many end between a commit and its announcement: those that run, and a burst of
cancellations."""


class Ledger:
    """The durable record of builds: database, event log, and a file for people.

    `delete_repository` removes what the registry holds of a build.
    """

    def __init__(
        self,
        database: Database,
        logs: BuildLogs,
        builds_dir: Path,
        threads: Threads,
        clock: Clock,
        delete_repository: Callable[[RepositoryName], Awaitable[bool]],
        on_end: Callable[[Build], None] = lambda build: None,
    ) -> None:
        self.database = database
        self.logs = logs
        self.clock = clock
        self._builds_dir = builds_dir
        self.threads = threads
        self.delete_repository = delete_repository
        self._metadata = trio.Lock()
        self._on_end = on_end

    def directory(self, build_id: BuildId) -> Path:
        """Return the directory that holds everything of a build."""
        return self._builds_dir / build_id

    def source_path(self, build_id: BuildId) -> Path:
        """Return where the uploaded archive of a build is."""
        return self.directory(build_id) / "source" / "source.tar.gz"

    def evidence_path(self, build_id: BuildId) -> Path:
        """Return where the evidence of a build is whose machine was lost; see `keep_evidence`."""
        return self.logs.directory(build_id) / "evidence.txt"

    async def keep_evidence(self, build_id: BuildId, text: str) -> None:
        """Keep, for the operator, what a machine left that was lost. Raises HostError."""
        await run_in_thread(self.threads.disk, self._write_evidence_sync, build_id, text)

    async def find_made_by(self, key: IdempotencyKey, asked: Build) -> Build | None:
        """Return the build that `key` has made before. Raises Conflict if it was another request.

        Exact when asked by the queue, which is the only one to `enter` builds.
        """
        return await self.database.run(find_made_by, key, asked.tenant, self.clock())

    async def enter(self, build: Build, key: IdempotencyKey | None = None) -> None:
        """Record a new build, which `key` makes. It will reach a final status, come what may.

        The row comes last: nobody can see the files before it. Raises HostError, with nothing
        recorded, if the disk or the database refuses.
        """
        await self._publish(build)
        await self.database.run(insert_build, build, key)

    async def load(self, build_id: BuildId) -> Build:
        """Return a build, for whoever owns it. One that cannot be read is ended as failed, so that
        it holds up no other. Raises NotFound, HostError.
        """
        try:
            return await self.database.run(builds.get_build, build_id)
        except RecordDamaged as exc:
            log.error("build.record_damaged", build_id=build_id, why=exc.message)
        build = await self.database.run(builds.end_damaged, build_id, self.clock())
        if build.status is not Status.READY:
            await self._remove_image(build)
        self._on_end(build)
        try:
            async with self.logs.open(build_id) as events:
                await self.repair(build, events)
        except HostError as exc:
            log.error("build.announcement_failed", build_id=build_id, why=exc.message)
        return build

    async def apply(self, build: Build, event: lifecycle.Event) -> Build:
        """Return `build` after `event`, durable and announced. No-op on a final build.

        Whatever a build pushed that ends without an image is gone when its end is stored.
        An announcement that cannot be written is logged and made up for by `repair`: the database
        is what counts.
        """
        after = lifecycle.step(build, event, self.clock())
        if after == build:
            return build
        if after.status.is_final and after.status is not Status.READY and after.attempt:
            await self._remove_image(after)
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
            await self._tell(build, events)
        except HostError as exc:
            log.error("build.announcement_failed", build_id=build.id, why=exc.message)

    async def take_back_end(self, build_id: BuildId) -> None:
        """Remove the end from the log of a build that has none in the database: its files are of a
        later moment, as after a backup was restored. The database is what counts.

        That the log cannot be opened or written is logged.
        """
        try:
            async with self.logs.open(build_id) as events:
                # An end is stored before it is told: what is asked after the log is no older.
                if events.is_final and not (await self.load(build_id)).status.is_final:
                    await events.take_back_end()
                    log.warning("build.log_was_ahead", build_id=build_id)
        except HostError as exc:
            log.error("build.announcement_failed", build_id=build_id, why=exc.message)

    async def repair_recent(self) -> None:
        """Do so for the builds that ended last: a crash may have kept their ends from being told.

        An older one is repaired when it is looked at.
        """
        for build_id in await self.database.run(builds.last_ended_ids, RECENT_BUILDS):
            try:
                build = await self.database.run(builds.get_build, build_id)
                async with self.logs.open(build_id) as events:
                    await self.repair(build, events)
                # Its log may be final though the disk refused this file.
                async with self._metadata:
                    await run_in_thread(self.threads.disk, self._write_metadata_sync, build)
            except NotFound:
                continue  # purged since
            except HostError as exc:
                log.error("build.announcement_failed", build_id=build_id, why=exc.message)

    async def forget(self, build_id: BuildId) -> None:
        """Remove a build, its image and its files: its row first, so that nothing ever points at
        what is missing. Raises HostError, and ActorGone if the registry has stopped.
        """
        await self.database.run(builds.delete_build, build_id)
        await self.delete_repository(RepositoryName(f"builds/{build_id}"))
        await self.discard(build_id)

    async def discard(self, build_id: BuildId) -> None:
        """Remove the files of a build that is not, or no longer, recorded. Raises HostError."""
        directory = self.directory(build_id)
        try:
            await run_in_thread(self.threads.disk, remove_tree_sync, directory)
        except OSError as exc:
            raise HostError(
                f"the files of build {build_id} cannot be removed: {exc.strerror}"
            ) from exc

    async def _remove_image(self, build: Build) -> None:
        """Remove the image of a build that ends without one, whichever attempt has pushed it: its
        machine is gone, and pushes no more.

        If that fails it is logged: the image stays until the build is removed.
        """
        with trio.move_on_after(REMOVE_SECONDS) as removing:
            try:
                await self.delete_repository(RepositoryName(f"builds/{build.id}"))
            except (HostError, ActorGone) as exc:
                log.error("build.image_not_removed", build_id=build.id, why=str(exc))
        if removing.cancelled_caught:
            log.error("build.image_not_removed", build_id=build.id, why="it took too long")

    async def _publish(self, build: Build) -> None:
        facts = {"build_id": build.id, "tenant": build.tenant, "attempt": build.attempt}
        if build.error_code:
            facts["error_code"] = build.error_code
        if build.error_reason:
            facts["error_reason"] = build.error_reason
        log.info(f"build.{build.status}", **facts)
        async with self.logs.open(build.id) as events:
            await self._tell(build, events)

    async def _tell(self, build: Build, events: BuildLog) -> None:
        """Write metadata.json, then the event: so a log that is final needs no repair."""
        failure = None
        try:
            async with self._metadata:  # who announces and who repairs may meet
                await run_in_thread(self.threads.disk, self._write_metadata_sync, build)
        except HostError as exc:
            failure = exc
        await self._announce(build, events)
        if failure is not None:
            raise failure

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

    def _write_evidence_sync(self, build_id: BuildId, text: str) -> None:
        path = self.evidence_path(build_id)
        try:
            # Not atomically: a crash makes another attempt, and the half of it is no lie.
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            with open(fd, "wb") as file:  # noqa: PTH123 - Path cannot open a descriptor
                file.write(text.encode(errors="replace"))
        except OSError as exc:
            raise HostError(f"{path.name} cannot be written: {exc.strerror}") from exc

    def _write_metadata_sync(self, build: Build) -> None:
        """Have metadata.json say this, for people and scripts; the database is what counts."""
        shown = {
            "id": build.id,
            "tenant": build.tenant,
            "status": build.status,
            "attempt": build.attempt,
            "created_at": rfc3339(build.created_at),
            "source_hash": f"sha256:{build.source.sha256}",
            "image_digest": build.image_digest,
            "error_code": build.error_code,
            "error_reason": build.error_reason,
            "error": build.error,
        }
        present = {key: value for key, value in shown.items() if value is not None}
        path = self.directory(build.id) / "metadata.json"
        try:
            data = json.dumps(present, indent=2).encode() + b"\n"
            if not path.exists() or path.read_bytes() != data:
                write_atomically_sync(path, data, is_sole_writer=True)
        except OSError as exc:
            raise HostError(f"{path.name} cannot be written: {exc.strerror}") from exc
