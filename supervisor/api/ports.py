"""What the API needs from the rest of the daemon, and nothing else.

Handlers parse, ask and render. Whatever has an effect is behind `Builds`, so a client that goes
away, which cancels its handler, undoes nothing that was accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from supervisor.actors.builds import BuildFilter, IdempotencyKey, NewBuild
from supervisor.api.logreaders import LogReaders
from supervisor.api.operations import Images, Operator
from supervisor.api.stopping import Stopping
from supervisor.config import Keys, Settings
from supervisor.model.build import Build, Step
from supervisor.model.events import EventBatch, EventId
from supervisor.model.ids import BuildId, Tenant
from supervisor.runtime.clock import Clock, wall_clock
from supervisor.runtime.threads import Threads


class EventReader(Protocol):
    """One follower's place in a build's events."""

    async def next_batch(self) -> EventBatch | None:
        """Return the next events, waiting if there are none yet; None when no more will come.

        Cancelling it loses nothing: the next call returns what this one would have.
        """
        ...


class Builds(Protocol):
    """What may be done with builds; `actors.builds.BuildService` in the daemon."""

    def readiness(self) -> str | None:
        """Return None if builds can start, else why not."""
        ...

    def new_id(self) -> BuildId:
        """Return the id for a submission that begins now."""
        ...

    def upload_path(self, build_id: BuildId) -> Path:
        """Return where the archive is to be written; its directory may not exist."""
        ...

    async def check_room(self, tenant: Tenant, key: str | None = None) -> None:
        """Raise QueueFull or NotReady if a submission would be refused now.

        One with an Idempotency-Key `key` that has made a build needs no room.
        """
        ...

    async def find_made_by(self, tenant: Tenant, key: IdempotencyKey) -> Build | None:
        """Return the build that `key` has made before. Raises Conflict if it was another request.

        None says nothing of what has been submitted since.
        """
        ...

    async def submit(self, new: NewBuild) -> Build:
        """Take a build in, durably. Raises QueueFull, NotReady and Conflict: nothing was recorded.

        Returns the earlier build if the key of `new` has made one: its id is another then.
        """
        ...

    async def discard(self, build_id: BuildId) -> None:
        """Remove the files of a submission that was not taken in."""
        ...

    async def get(self, build_id: BuildId) -> Build:
        """Return a build. Raises NotFound."""
        ...

    async def list(self, wanted: BuildFilter) -> list[Build]:
        """Return builds, newest first."""
        ...

    def queue_position(self, build_id: BuildId) -> int | None:
        """Return the 1-based position of a waiting build."""
        ...

    async def cancel(self, build_id: BuildId) -> None:
        """Accept the end of a build. Raises NotFound, or Conflict if it has ended."""
        ...

    async def purge(self, build_id: BuildId) -> None:
        """Forget a finished build. Raises NotFound, or Conflict if it has not ended."""
        ...

    async def steps(self, build_id: BuildId) -> Sequence[Step]:
        """Return the BuildKit steps. Raises NotFound."""
        ...

    async def check_place(self, build_id: BuildId, after: EventId) -> None:
        """Raise InvalidRequest if the events of a build have never reached `after`."""
        ...

    def open_events(
        self, build_id: BuildId, *, after: EventId, follow: bool
    ) -> AbstractAsyncContextManager[EventReader]:
        """Read the events of a build behind `after`. Raises NotFound."""
        ...

    async def evidence(self, build_id: BuildId) -> bytes:
        """Return what the last machine left that a build has lost, as text. Raises NotFound."""
        ...

    def log_path(self, build_id: BuildId) -> Path:
        """Return the plain-text log; it may not exist yet."""
        ...


@dataclass(frozen=True)
class ApiDeps:
    """Everything that handlers use, made by the composition root."""

    builds: Builds
    images: Images
    operator: Operator
    settings: Settings
    keys: Keys | None
    """None: no JWT_SECRET, so only the UNIX socket is served."""
    threads: Threads
    name_registry: Callable[[], str]
    """Returns the registry as users see it, `host:port`: known for sure once the API is served."""
    clock: Clock = wall_clock
    stopping: Stopping = field(default_factory=Stopping)
    log_readers: LogReaders = field(default_factory=LogReaders)

    @property
    def registry_address(self) -> str:
        """The registry as users see it, `host:port`."""
        return self.name_registry()
