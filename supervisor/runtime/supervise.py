"""Supervision in the manner of OTP: permanent tasks are restarted, within an intensity.

There are two levels only: this one, and the service manager above the daemon. Past the limit the
failure leaves through the nursery, the daemon exits non-zero, and the service manager starts it
again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from supervisor.runtime.logs import log


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """At most `intensity` restarts within `period_seconds`; `delay_seconds` before each."""

    intensity: int = 3
    period_seconds: float = 60.0
    delay_seconds: float = 0.2


class RestartLimitExceeded(Exception):
    """A permanent task failed too often; its supervisor gives up."""


class _FirstStart:
    """Tells the starter of the first `started`, and nobody of those of restarts."""

    def __init__(self, task_status: trio.TaskStatus[Any]) -> None:
        self._task_status = task_status
        self.is_done = False

    def started(self, value: Any = None) -> None:
        if not self.is_done:
            self.is_done = True
            self._task_status.started(value)


async def supervise(
    name: str,
    run: Callable[..., Awaitable[None]],
    *,
    policy: RestartPolicy,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep `run(task_status=…)` running, in this task; returns only if it returns.

    A first start that fails is the starter's problem and is raised as it is. Later failures are
    logged once and answered with a restart, until the policy's limit raises RestartLimitExceeded.
    """
    failures: deque[float] = deque()
    first_start = _FirstStart(task_status)
    while True:
        try:
            await run(task_status=first_start)
            return
        except Exception as exc:
            if not first_start.is_done:
                raise
            log.opt(exception=exc).error("actor.crashed", actor=name)
            now = trio.current_time()
            failures.append(now)
            while failures[0] <= now - policy.period_seconds:
                failures.popleft()
            if len(failures) > policy.intensity:
                raise RestartLimitExceeded(
                    f"{name} failed {len(failures)} times within {policy.period_seconds:g} s"
                ) from exc
        # Outside of `except`: a cancellation here hides nothing.
        await trio.sleep(policy.delay_seconds)
