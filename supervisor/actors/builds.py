"""What the API may do with builds: one front for the queue, the running actors and the store."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from supervisor.actors.ledger import Ledger
from supervisor.actors.queue import QueueHandle
from supervisor.actors.runner import BuildRunner
from supervisor.errors import Conflict, HostError, InvalidRequest, NotFound, RecordDamaged
from supervisor.model.build import Build, BuildRequest, Source, Step
from supervisor.model.events import START, EventBatch, EventId
from supervisor.model.ids import BuildId, IdSource, Tenant, parse_build_id
from supervisor.runtime.logs import log
from supervisor.runtime.threads import run_in_thread
from supervisor.store import builds
from supervisor.store.builds import BuildFilter
from supervisor.store.eventlog import BuildLog
from supervisor.store.idempotency import IdempotencyKey, find_made_by, is_key_known

__all__ = ["BuildFilter", "BuildService", "EventReader", "IdempotencyKey", "NewBuild"]


@dataclass(frozen=True, slots=True)
class NewBuild:
    """A checked submission; the archive lies at `BuildService.upload_path(id)`."""

    id: BuildId
    tenant: Tenant
    request: BuildRequest
    source: Source
    key: IdempotencyKey | None = None


class EventReader:
    """One follower's place in a build's events."""

    def __init__(self, log: BuildLog, after: EventId, *, follow: bool) -> None:
        self._log = log
        self._at = after
        self._follow = follow

    async def next_batch(self) -> EventBatch | None:
        """Return the next events, waiting for them when following; None when no more will come."""
        while True:
            if (batch := await self._log.read(self._at)) is not None:
                self._at = batch.last_id
                return batch
            if not self._follow or self._log.has_ended:
                return None
            await self._log.wait_behind(self._at)


class BuildService:
    """Builds as the outside sees them. Raises the errors of `supervisor.errors`, and ActorGone."""

    def __init__(
        self,
        ledger: Ledger,
        queue: QueueHandle,
        runner: BuildRunner,
        ids: IdSource,
        why_not_ready: Callable[[], str | None],
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._runner = runner
        self._ids = ids
        self._why_not_ready = why_not_ready

    def readiness(self) -> str | None:
        """Return None if builds can start, else why not."""
        if self._queue.is_draining:
            return "the daemon is stopping"
        return self._why_not_ready()

    def new_id(self) -> BuildId:
        """Return the id for a submission that begins now."""
        return self._ids.build_id(self._ledger.clock())

    def upload_path(self, build_id: BuildId) -> Path:
        """Return where a submission's archive is to be written; its directory may not exist."""
        return self._ledger.source_path(build_id)

    async def check_room(self, tenant: Tenant, key: str | None = None) -> None:
        """Raise QueueFull or NotReady if a submission would be refused now.

        One with an Idempotency-Key `key` that has made a build needs no room.
        """
        now = self._ledger.clock()
        if key is None or not await self._ledger.database.run(is_key_known, tenant, key, now):
            self._queue.check_room()

    async def find_made_by(self, tenant: Tenant, key: IdempotencyKey) -> Build | None:
        """Return the build that `key` has made before. Raises Conflict if it was another request.

        None says nothing of what has been submitted since.
        """
        return await self._ledger.database.run(find_made_by, key, tenant, self._ledger.clock())

    async def submit(self, new: NewBuild) -> Build:
        """Take a build in. When this returns, the build is durable.

        Returns the earlier build if `new.key` has made one: then its id is another, and the files
        of `new` are still there to be discarded. Raises QueueFull, NotReady and Conflict.
        """
        now = self._ledger.clock()
        return await self._queue.submit(
            Build(
                id=new.id,
                tenant=new.tenant,
                request=new.request,
                source=new.source,
                created_at=now,
                queued_at=now,
            ),
            new.key,
        )

    async def discard(self, build_id: BuildId) -> None:
        """Remove the files of a submission that was not taken in."""
        await self._ledger.discard(build_id)

    async def get(self, build_id: BuildId) -> Build:
        """Return a build. Raises NotFound, and RecordDamaged."""
        return await self._ledger.database.run(builds.get_build, build_id)

    async def list(self, wanted: BuildFilter) -> list[Build]:
        """Return builds, newest first."""
        return await self._ledger.database.run(builds.list_builds, wanted)

    def queue_position(self, build_id: BuildId) -> int | None:
        """Return the 1-based position of a waiting build."""
        return self._queue.position(build_id)

    async def cancel(self, build_id: BuildId) -> None:
        """Accept the end of a build. Raises NotFound, or Conflict if it has ended."""
        await self._queue.cancel(build_id)

    async def purge(self, build_id: BuildId) -> None:
        """Forget a finished build and its files. Raises NotFound; Conflict if it has not ended."""
        try:
            build = await self.get(build_id)
        except RecordDamaged:
            if build_id in self._runner.running or self._queue.position(build_id) is not None:
                raise
        else:
            if not build.status.is_final:
                raise Conflict(f"build {build_id} is {build.status}; cancel it first")
        await self._ledger.forget(build_id)

    async def steps(self, build_id: BuildId) -> Sequence[Step]:
        """Return the steps of the present or the last attempt. Raises NotFound."""
        if (actor := self._runner.running.get(build_id)) is not None:
            return actor.steps
        await self.get(build_id)
        return await self._ledger.database.run(builds.get_steps, build_id)

    async def check_place(self, build_id: BuildId, after: EventId) -> None:
        """Raise InvalidRequest if the events of a build have never reached `after`.

        Whoever asks to go on behind such an event means another build, or one whose last events
        went down with the host: it would wait for what it can never get in order.
        """
        if after == START:
            return
        async with self._ledger.logs.open(build_id) as log:
            if after > log.end:
                raise InvalidRequest(
                    f"build {build_id} has no event {after}; its last one so far is {log.end}."
                    " Follow it from the beginning"
                )

    @asynccontextmanager
    async def open_events(
        self, build_id: BuildId, *, after: EventId, follow: bool
    ) -> AsyncIterator[EventReader]:
        """Follow the events of a build behind `after`, which may be any number. Raises NotFound.

        Following ends after the final status; not following ends at the last event there is.
        """
        build = await self.get(build_id)
        async with self._ledger.logs.open(build_id) as log:
            await self._ledger.repair(build, log)
            yield EventReader(log, await log.locate(after), follow=follow)

    async def evidence(self, build_id: BuildId) -> bytes:
        """Return what the last machine left that a build has lost, for the operator.

        Its first line names the attempt, which a crash of the daemon may have followed by others.
        Raises NotFound, HostError.
        """
        path = self._ledger.evidence_path(build_id)
        try:
            return await run_in_thread(self._ledger.threads.disk, path.read_bytes)
        except FileNotFoundError as exc:
            raise NotFound(
                f"build {build_id} has left no evidence: it has not lost a machine"
            ) from exc
        except OSError as exc:
            raise HostError(f"{path.name} cannot be read: {exc.strerror}") from exc

    def log_path(self, build_id: BuildId) -> Path:
        """Return the plain-text log of a build."""
        return self._ledger.logs.text_path(build_id)


async def sweep_uploads(ledger: Ledger, builds_dir: Path) -> int:
    """Remove what submissions left that a crash cut short; return how many are gone.

    One that cannot be removed is logged, and stays for the next start.
    """
    disk = ledger.threads.disk
    names = await run_in_thread(disk, _names_sync, builds_dir)
    unknown = await ledger.database.run(builds.unstored, names)
    leftovers = await run_in_thread(disk, _directories_sync, builds_dir, unknown)
    removed = 0
    for build_id in leftovers:
        try:
            await ledger.discard(build_id)
            removed += 1
        except HostError as exc:
            log.error("build.files_not_removed", build_id=build_id, why=exc.message)
    return removed


def _names_sync(path: Path) -> set[str]:
    # There may be many, of each of which `Path.iterdir` would make a path.
    return set(os.listdir(path))  # noqa: PTH208 - see above


def _directories_sync(path: Path, names: set[str]) -> list[BuildId]:
    """Return what lies there under the name of a build; anything else is not ours to remove."""
    ids = (parse_build_id(name) for name in sorted(names))
    return [build_id for build_id in ids if build_id is not None and (path / build_id).is_dir()]
