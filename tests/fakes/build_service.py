"""The build service in memory, with knobs for what builds otherwise do by themselves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from supervisor.actors.builds import BuildFilter, IdempotencyKey, NewBuild
from supervisor.errors import Conflict, InvalidRequest, NotFound, NotReady, QueueFull
from supervisor.model.build import Build, Status, Step
from supervisor.model.events import EventBatch, EventId, is_final_status, log_event, status_event
from supervisor.model.ids import BuildId, IdSource, Tenant
from supervisor.model.times import rfc3339
from supervisor.runtime.files import remove_tree_sync


class FakeBuilds:
    """Builds that do what the test says: `log`, `finish`, `tear`."""

    def __init__(self, directory: Path, *, now: float = 1_800_000_000.0) -> None:
        self.directory = directory
        self.now = now
        self.why_not_ready: str | None = None
        self.room: int | None = None
        self.submit_error: Exception | None = None
        self.batch_size = 100
        self.open_readers = 0
        self.builds: dict[BuildId, Build] = {}
        self.steps_of: dict[BuildId, tuple[Step, ...]] = {}
        self.evidence_of: dict[BuildId, bytes] = {}
        self.submitting = trio.Event()
        self.go_on_submitting = trio.Event()
        self.go_on_submitting.set()
        self._events: dict[BuildId, list[bytes]] = {}
        self._keys: dict[tuple[Tenant, str], tuple[BuildId, str]] = {}
        self._changed = trio.Event()
        self._ids = IdSource()

    # What the API calls

    def readiness(self) -> str | None:
        return self.why_not_ready

    def new_id(self) -> BuildId:
        return self._ids.build_id(self.now)

    def upload_path(self, build_id: BuildId) -> Path:
        return self.directory / build_id / "source" / "source.tar.gz"

    def log_path(self, build_id: BuildId) -> Path:
        return self.directory / build_id / "logs" / "build.log"

    async def evidence(self, build_id: BuildId) -> bytes:
        await trio.lowlevel.checkpoint()
        if build_id not in self.evidence_of:
            raise NotFound(f"build {build_id} has left no evidence")
        return self.evidence_of[build_id]

    async def check_room(self, tenant: Tenant, key: str | None = None) -> None:
        if (tenant, key) in self._keys:
            return
        if self.why_not_ready is not None:
            raise NotReady(self.why_not_ready)
        if self.room is not None and self._waiting() >= self.room:
            raise QueueFull(f"{self.room} builds are waiting already", retry_after_seconds=30)

    async def find_made_by(self, tenant: Tenant, key: IdempotencyKey) -> Build | None:
        await trio.lowlevel.checkpoint()
        if (tenant, key.key) not in self._keys:
            return None
        build_id, request_hash = self._keys[tenant, key.key]
        if request_hash != key.request_hash:
            raise Conflict("the Idempotency-Key came with another request")
        return self.builds[build_id]

    async def submit(self, new: NewBuild) -> Build:
        self.submitting.set()
        await self.go_on_submitting.wait()
        if self.submit_error is not None:
            raise self.submit_error
        await self.check_room(new.tenant, None if new.key is None else new.key.key)
        if new.key is not None:
            first, request_hash = self._keys.setdefault(
                (new.tenant, new.key.key), (new.id, new.key.request_hash)
            )
            if request_hash != new.key.request_hash:
                raise Conflict("the Idempotency-Key came with another request")
            if first != new.id:
                return self.builds[first]
        build = Build(new.id, new.tenant, new.request, new.source, self.now, queued_at=self.now)
        self.builds[build.id] = build
        self._append(build.id, status_event(rfc3339(self.now), build))
        return build

    async def discard(self, build_id: BuildId) -> None:
        await trio.lowlevel.checkpoint()
        assert build_id not in self.builds, "a build that was taken in is discarded"
        remove_tree_sync(self.directory / build_id)

    async def get(self, build_id: BuildId) -> Build:
        await trio.lowlevel.checkpoint()
        if build_id not in self.builds:
            raise NotFound(f"there is no build {build_id}")
        return self.builds[build_id]

    async def list(self, wanted: BuildFilter) -> list[Build]:
        await trio.lowlevel.checkpoint()
        found = [
            build
            for build_id, build in sorted(self.builds.items(), reverse=True)
            if (wanted.tenant is None or build.tenant == wanted.tenant)
            and (wanted.status is None or build.status is wanted.status)
            and (wanted.before is None or build_id < wanted.before)
            and wanted.tags.items() <= build.request.tags.items()
        ]
        return found[: wanted.limit]

    def queue_position(self, build_id: BuildId) -> int | None:
        waiting = [id for id, build in sorted(self.builds.items()) if build.status is Status.QUEUED]
        return waiting.index(build_id) + 1 if build_id in waiting else None

    async def cancel(self, build_id: BuildId) -> None:
        if (await self.get(build_id)).status.is_final:
            raise Conflict(f"build {build_id} has ended")
        self.finish(build_id, Status.CANCELLED)

    async def purge(self, build_id: BuildId) -> None:
        if not (await self.get(build_id)).status.is_final:
            raise Conflict(f"build {build_id} has not ended; cancel it first")
        del self.builds[build_id]
        remove_tree_sync(self.directory / build_id)

    async def steps(self, build_id: BuildId) -> Sequence[Step]:
        await self.get(build_id)
        return self.steps_of.get(build_id, ())

    async def check_place(self, build_id: BuildId, after: EventId) -> None:
        await trio.lowlevel.checkpoint()
        if after > len(self._events[build_id]):
            raise InvalidRequest(f"build {build_id} has no event {after}")

    @asynccontextmanager
    async def open_events(
        self, build_id: BuildId, *, after: EventId, follow: bool
    ) -> AsyncIterator[FakeReader]:
        await self.get(build_id)
        self.open_readers += 1
        try:
            yield FakeReader(self, build_id, after, follow=follow)
        finally:
            self.open_readers -= 1

    # What tests do

    def change(self, build: Build) -> None:
        """Put a build into another state, without an event."""
        self.builds[build.id] = build

    def start(self, build_id: BuildId) -> None:
        self.builds[build_id] = replace(
            self.builds[build_id], status=Status.BUILDING, started_at=self.now, attempt=1
        )

    def log(self, build_id: BuildId, *lines: str) -> None:
        for line in lines:
            self._append(build_id, log_event(rfc3339(self.now), "", line))
        path = self.log_path(build_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def finish(self, build_id: BuildId, status: Status) -> None:
        build = replace(self.builds[build_id], status=status, completed_at=self.now)
        self.builds[build_id] = build
        self._append(build_id, status_event(rfc3339(self.now), build))

    def leftovers(self) -> Sequence[Path]:
        """Files and directories of builds that were never taken in."""
        return [path for path in self.directory.iterdir() if path.name not in self.builds]

    # What readers call

    def read(self, build_id: BuildId, after: EventId) -> EventBatch | None:
        events = self._events[build_id][after : after + self.batch_size]
        numbered = tuple((EventId(after + n), event) for n, event in enumerate(events, 1))
        return EventBatch(numbered) if numbered else None

    def is_final(self, build_id: BuildId) -> bool:
        events = self._events[build_id]
        return bool(events) and is_final_status(events[-1])

    async def wait_change(self) -> None:
        await self._changed.wait()

    def _append(self, build_id: BuildId, event: bytes) -> None:
        json.loads(event)
        self._events.setdefault(build_id, []).append(event)
        self._changed.set()
        self._changed = trio.Event()

    def _waiting(self) -> int:
        return sum(build.status is Status.QUEUED for build in self.builds.values())


class FakeReader:
    """A follower's place in the events of a fake build."""

    def __init__(
        self, fake: FakeBuilds, build_id: BuildId, after: EventId, *, follow: bool
    ) -> None:
        self._fake = fake
        self._build_id = build_id
        self._at = after
        self._follow = follow

    async def next_batch(self) -> EventBatch | None:
        await trio.lowlevel.checkpoint()
        while True:
            if (batch := self._fake.read(self._build_id, self._at)) is not None:
                self._at = batch.last_id
                return batch
            if not self._follow or self._fake.is_final(self._build_id):
                return None
            await self._fake.wait_change()
