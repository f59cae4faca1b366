"""What the pool boots and retires next: every rule of it in one pure function.

A machine of the pool counts as much as a build: the builds that hold a machine and the machines
that wait for one are together never more than the host's capacity. So the memory that the operator
has planned for builds is all that is ever used, and a build never waits because of the pool.

1. While the daemon stops, nothing waits and nothing boots.
2. What has waited too long is retired.
3. What the capacity has no room for is retired, the machine that has cost least first.
4. One machine boots at a time, while fewer wait than wanted and there is room for it, and while its
   processors are idle: builds that run are not slowed down for those that may come.
5. After a machine that did not come up or died, the next boot waits, longer each time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.model.ids import MachineId

MAX_RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """The numbers that govern the pool."""

    size: int
    """Machines that should wait."""
    capacity: int
    """Machines at once, those of builds included."""
    machine_cpus: int
    """Processors of one machine of the pool."""
    host_cpus: int
    max_age_seconds: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """A machine that no build has yet. `since` is when its boot began."""

    id: MachineId
    is_up: bool
    since: float


@dataclass(frozen=True, slots=True)
class PoolState:
    """What the rules look at. Times are of one monotonic clock, in seconds."""

    waiting: Sequence[Waiting]
    leased_cpus: Sequence[int]
    """The processors of each build's machine."""
    failures: int
    """How many machines in a row failed before a build could have them."""
    failed_at: float
    """When the last of them did."""
    is_draining: bool


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What to do now, and when to look again if nothing happens before."""

    retire: tuple[MachineId, ...]
    boot: bool
    look_again_at: float


def plan_pool(state: PoolState, limits: PoolLimits, now: float) -> PoolPlan:
    """Return what follows from the present state of the pool."""
    if state.is_draining:
        return PoolPlan(tuple(machine.id for machine in state.waiting), False, math.inf)
    fresh = [
        machine
        for machine in state.waiting
        if not machine.is_up or now < machine.since + limits.max_age_seconds
    ]
    # Those that are up first, and of these the ones that will be of use longest.
    fresh.sort(key=lambda machine: (machine.is_up, machine.since), reverse=True)
    room = max(0, limits.capacity - len(state.leased_cpus))
    kept = fresh[: min(limits.size, room)]
    keep_ids = {machine.id for machine in kept}
    retire = tuple(machine.id for machine in state.waiting if machine.id not in keep_ids)

    ages = [machine.since + limits.max_age_seconds for machine in kept if machine.is_up]
    look_again_at = min(ages, default=math.inf)
    may_boot = (
        len(kept) < min(limits.size, room)
        and all(machine.is_up for machine in kept)
        and has_idle_processors(state.leased_cpus, limits)
    )
    boot_at = state.failed_at + retry_seconds(state.failures)
    if may_boot and now < boot_at:
        return PoolPlan(retire, False, min(look_again_at, boot_at))
    return PoolPlan(retire, may_boot, look_again_at)


def has_idle_processors(leased_cpus: Sequence[int], limits: PoolLimits) -> bool:
    """Say whether a boot would leave the running builds what they were given."""
    return not leased_cpus or sum(leased_cpus) + limits.machine_cpus <= limits.host_cpus


def retry_seconds(failures: int) -> float:
    """Return how long a boot waits after so many failures in a row."""
    if failures == 0:
        return 0.0
    return min(MAX_RETRY_SECONDS, 2.0 ** min(failures - 1, 10))
