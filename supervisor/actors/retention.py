"""What is kept no longer: old builds with their files and images, and expired idempotency keys.

Permanent. A round at the start, then one every hour. Each build goes by itself, row first, so a
round may be cut off anywhere: what is left of one is found by the next round (its image) or at the
next start (its files). The extra name of an image is the tenant's, and stays.

Age is wall-clock time, which may be wrong: after it has jumped forwards nothing is removed for a
day. A clock that goes back makes everything younger, and needs no care.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import trio

from supervisor.actors.ledger import Ledger
from supervisor.errors import HostError
from supervisor.runtime.logs import log
from supervisor.runtime.mailbox import ActorGone
from supervisor.store.idempotency import drop_expired_keys
from supervisor.store.retention import find_expired, find_stray_images

INTERVAL_SECONDS = 3600.0
JUMP_SECONDS = 3600.0
"""By so much may the clock move forwards beside the time that passes, without being doubted."""
DOUBT_SECONDS = 24 * 3600.0
"""So long nothing is removed after a greater jump: time for somebody to set the clock right."""
_BATCH = 100


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long what has ended is kept: BUILD_RETENTION_DAYS and BUILD_RETENTION_COUNT."""

    seconds: float
    newest_kept: int
    """So many of all builds are kept, however old they are."""


class RetentionActor:
    """Removes what is kept no longer. Run it under `supervise`."""

    def __init__(self, ledger: Ledger, policy: RetentionPolicy) -> None:
        self._ledger = ledger
        self._policy = policy
        self._offset: float | None = None
        self._doubted_until = -math.inf

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do rounds until cancelled. A host that fails for a while delays what should go."""
        task_status.started()
        while True:
            try:
                if not self._is_clock_doubtful():
                    await self.remove_expired()
            except (HostError, ActorGone) as exc:
                log.error("retention.cannot_go_on", why=str(exc), retry_seconds=INTERVAL_SECONDS)
            await trio.sleep(INTERVAL_SECONDS)

    def _is_clock_doubtful(self) -> bool:
        """Say whether the wall clock has jumped forwards, now or less than a day ago."""
        now = trio.current_time()
        offset = self._ledger.clock() - now
        if self._offset is not None and offset > self._offset + JUMP_SECONDS:
            jumped = round(offset - self._offset)
            log.warning("retention.clock_jumped", seconds=jumped, pause_seconds=DOUBT_SECONDS)
            self._doubted_until = now + DOUBT_SECONDS
        elif self._offset is not None and offset < self._offset - JUMP_SECONDS:
            self._doubted_until = -math.inf  # it was set right
        self._offset = offset
        return now < self._doubted_until

    async def remove_expired(self) -> None:
        """Do one round. Raises HostError, and ActorGone if the registry has stopped."""
        database = self._ledger.database
        now = self._ledger.clock()
        keys = await database.run(drop_expired_keys, now)
        before, newest = now - self._policy.seconds, self._policy.newest_kept
        removed = 0
        while expired := await database.run(find_expired, before, newest, _BATCH):
            for build_id in expired:
                await self._ledger.forget(build_id)
                removed += 1
        while strays := await database.run(find_stray_images, _BATCH):
            for repository in strays:
                await self._ledger.delete_repository(repository)
        if removed or keys:
            log.info("retention.removed", builds=removed, idempotency_keys=keys)
