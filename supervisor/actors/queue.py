"""The queue: order, capacity and fairness between builds. Permanent.

Every wish to start or end a build passes through this one mailbox, so there is no race between,
say, a cancellation and a start. What starts is decided by `schedule.plan`; this actor does the I/O.
A restart reads the store again and takes over the builds that run, so a crash here loses nothing.
A host that fails for a while (a full disk) delays what should start, and ends nothing that runs.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from supervisor.actors.ledger import Ledger
from supervisor.actors.schedule import Capacity, plan
from supervisor.errors import (
    Conflict,
    HostError,
    NotFound,
    NotReady,
    QueueFull,
    SupervisorError,
)
from supervisor.model.build import RUNNING, Build, Status
from supervisor.model.ids import BuildId, Tenant
from supervisor.model.lifecycle import CancelRequested, Interrupted, Started
from supervisor.runtime.logs import log
from supervisor.runtime.mailbox import ActorGone, Mailbox, Reply, answering
from supervisor.store import builds
from supervisor.store.idempotency import IdempotencyKey

T = TypeVar("T")

RETRY_AFTER_SECONDS = 30
"""What a caller is told when the queue is full: about the length of a small build."""
HOST_RETRY_SECONDS = 5.0
"""After which the queue tries again what the disk or the database refused."""
LOG_PATIENCE_SECONDS = 60.0
"""For which a build whose log cannot be opened waits for the host; then it has lost the attempt. A
host that has run out of something may recover meanwhile; a log that is damaged never does.
"""


class RunningBuild(Protocol):
    """The handle to the actor of a running build."""

    @property
    def tenant(self) -> Tenant:
        """Whose build it is."""
        ...

    def cancel(self) -> bool:
        """Begin to end the build as cancelled; False if it has another verdict already.

        Returns at once. What it says stays true, but for a host that goes down.
        """
        ...


class BuildRunner(Protocol):
    """Starts the actors of builds, and knows those that run."""

    @property
    def running(self) -> Mapping[BuildId, RunningBuild]:
        """The builds that hold a slot."""
        ...

    def start_nowait(self, build: Build, done: Callable[[BuildId], Awaitable[None]]) -> None:
        """Start the actor of `build`; when it has ended and holds no slot, it calls `done`."""
        ...


@dataclass(frozen=True, slots=True)
class Submit:
    """Take a new build in, unless its key has made one already."""

    build: Build
    key: IdempotencyKey | None
    reply: Reply[Build]


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a build, wherever it is."""

    build_id: BuildId
    reply: Reply[None]


@dataclass(frozen=True, slots=True)
class Done:
    """A build's actor has ended; the slot is free. The build may have to wait again."""

    build_id: BuildId


@dataclass(frozen=True, slots=True)
class Drain:
    """Start nothing any more."""

    reply: Reply[None]


Message = Submit | Cancel | Done | Drain


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The numbers that govern the queue."""

    capacity: Capacity
    max_queued: int


class QueueHandle:
    """What others may do with the queue."""

    def __init__(self, mailbox: Mailbox[Message], limits: QueueLimits) -> None:
        self._mailbox = mailbox
        self._limits = limits
        self._positions: dict[BuildId, int] = {}
        self.is_draining = False

    async def submit(self, build: Build, key: IdempotencyKey | None = None) -> Build:
        """Take a build in, durably; return it, or the one that `key` has made before.

        Raises QueueFull, NotReady while draining, and Conflict if `key` made another build.
        """
        return await self._mailbox.ask(lambda reply: Submit(build, key, reply))

    async def cancel(self, build_id: BuildId) -> None:
        """Accept the end of a build, durably. Raises NotFound, or Conflict if it has ended."""
        await self._mailbox.ask(lambda reply: Cancel(build_id, reply))

    async def drain(self) -> None:
        """Start nothing from now on."""
        self.is_draining = True
        await self._mailbox.ask(Drain)

    def check_room(self) -> None:
        """Raise QueueFull or NotReady if `submit` would: worth asking before an upload is read."""
        if self.is_draining:
            raise NotReady("the daemon is stopping; submit again when it has restarted")
        if len(self._positions) >= self._limits.max_queued:
            raise QueueFull(
                f"{self._limits.max_queued} builds are waiting already; try again later",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )

    def position(self, build_id: BuildId) -> int | None:
        """Return the 1-based position of a waiting build, None for any other."""
        return self._positions.get(build_id)

    @property
    def waiting(self) -> Sequence[BuildId]:
        """The builds that wait, by position."""
        return tuple(self._positions)

    @property
    def length(self) -> int:
        """How many builds wait."""
        return len(self._positions)

    def publish_positions(self, waiting: tuple[BuildId, ...]) -> None:
        """Show a new order. The actor's call only."""
        self._positions = {build_id: at for at, build_id in enumerate(waiting, start=1)}


class QueueActor:
    """Owns which builds wait. Run it under `supervise`."""

    def __init__(
        self,
        mailbox: Mailbox[Message],
        handle: QueueHandle,
        ledger: Ledger,
        runner: BuildRunner,
        limits: QueueLimits,
    ) -> None:
        self._mailbox = mailbox
        self._handle = handle
        self._ledger = ledger
        self._runner = runner
        self._limits = limits
        # Whose each waiting build is; a whole request may be megabytes, and a thousand may wait.
        self._waiting: dict[BuildId, Tenant] = {}
        self._returning: dict[BuildId, float] = {}
        """Builds whose actor has ended, and that may have to wait again; when their logs are given
        up that cannot be opened."""
        self._last_start: dict[Tenant, int] = {}
        self._starts = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Recover, then handle messages until cancelled."""
        await self._recover()
        task_status.started()
        while True:
            pause_seconds = await self._move_on()
            message = None
            with trio.move_on_after(pause_seconds):
                message = await self._mailbox.receive()
            if message is not None:
                with answering(message):
                    await self._handle_message(message)

    async def _recover(self) -> None:
        """Take up every build without a final status."""
        for build_id in await self._ledger.database.run(builds.unfinished_ids):
            await self._ledger.take_back_end(build_id)
            await self._take_up(await self._ledger.load(build_id))
        await self._ledger.repair_recent()

    async def _take_up(self, build: Build) -> None:
        """Let a stored build wait, unless it runs or has ended. One that lost its machine, too."""
        if build.id in self._runner.running:
            return
        if build.status in RUNNING:
            build = await self._ledger.apply(build, Interrupted())
            log.info("build.recovered", build_id=build.id, status=build.status)
        if build.cancel_requested:
            build = await self._ledger.apply(build, CancelRequested())
        if build.status is Status.QUEUED:
            self._waiting[build.id] = build.tenant

    async def _move_on(self) -> float:
        """Do what follows from the present state. Return after how many seconds to try again."""
        try:
            await self._take_back()
            await self._start_what_fits()
        except HostError as exc:
            log.error("queue.cannot_move_on", why=exc.message, retry_seconds=HOST_RETRY_SECONDS)
            return HOST_RETRY_SECONDS
        return HOST_RETRY_SECONDS if self._returning else math.inf

    async def _handle_message(self, message: Message) -> None:
        match message:
            case Submit(build, key, reply):
                await _answer(reply, self._submit(build, key))
            case Cancel(build_id, reply):
                await _answer(reply, self._cancel(build_id))
            case Done(build_id):
                self._returning[build_id] = trio.current_time() + LOG_PATIENCE_SECONDS
            case Drain(reply):
                reply.set(None)

    async def _submit(self, asked: Build, key: IdempotencyKey | None) -> Build:
        if key is not None and (known := await self._ledger.find_made_by(key, asked)) is not None:
            return known  # however full the queue is by now
        self._handle.check_room()
        await self._ledger.enter(asked, key)
        self._waiting[asked.id] = asked.tenant
        self._publish()
        return asked

    async def _cancel(self, build_id: BuildId) -> None:
        if build_id in self._waiting:
            await self._ledger.apply(await self._ledger.load(build_id), CancelRequested())
            del self._waiting[build_id]
        elif (running := self._runner.running.get(build_id)) is not None:
            # The verdict first: it is what the cancellation competes with.
            if not running.cancel():
                raise Conflict(f"build {build_id} has just ended; there is nothing to cancel")
            await self._ledger.database.run(builds.mark_cancel_requested, build_id)
        else:
            await self._cancel_between_owners(build_id)

    async def _cancel_between_owners(self, build_id: BuildId) -> None:
        """Cancel a build that neither waits nor runs: ended, unknown, or on its way back here."""
        build = await self._ledger.load(build_id)
        if build.status.is_final:
            raise Conflict(f"build {build_id} has ended already; there is nothing to cancel")
        await self._ledger.apply(build, CancelRequested())

    async def _take_back(self) -> None:
        """Let the builds wait again whose actors have ended without a verdict.

        One whose log cannot be opened holds up no other, and is not tried again for ever.
        """
        for build_id, give_up_at in list(self._returning.items()):
            try:
                build = await self._ledger.load(build_id)
            except NotFound:
                pass  # purged since
            else:
                # Its end may be stored and, on a disk that stalled, not announced.
                try:
                    async with self._ledger.logs.open(build_id) as events:
                        await self._ledger.repair(build, events)
                except HostError as exc:
                    log.error("build.announcement_failed", build_id=build_id, why=exc.message)
                    if trio.current_time() < give_up_at:
                        continue
                await self._take_up(build)
            del self._returning[build_id]

    async def _start_what_fits(self) -> None:
        """Start what the plan says, one after the other, and show the order of the rest."""
        while start := self._publish():
            build = await self._ledger.apply(await self._ledger.load(start[0]), Started())
            # From here on the build belongs to its actor; nothing awaits in between.
            del self._waiting[build.id]
            if build.status.is_final:
                continue  # what is stored of it is damaged
            self._starts += 1
            self._last_start[build.tenant] = self._starts
            self._runner.start_nowait(build, self._done)

    def _publish(self) -> tuple[BuildId, ...]:
        """Show the present order; return what may start now."""
        decision = plan(
            self._waiting,
            [running.tenant for running in self._runner.running.values()],
            self._last_start,
            self._limits.capacity,
        )
        if self._handle.is_draining:
            self._handle.publish_positions(decision.start + decision.waiting)
            return ()
        self._handle.publish_positions(decision.waiting)
        return decision.start

    async def _done(self, build_id: BuildId) -> None:
        # A queue that is gone for good reads the store when the daemon starts again.
        with contextlib.suppress(ActorGone):
            await self._mailbox.tell(Done(build_id))


async def _answer(reply: Reply[T], work: Awaitable[T]) -> None:
    """Answer with the result of `work`; an error that we raise on purpose is an answer as well."""
    try:
        reply.set(await work)
    except SupervisorError as exc:
        reply.fail(exc)
