"""Which build starts next: every rule of the queue in one pure function.

The order between tenants is fair, the order within a tenant is first come, first served:

1. The next build is the oldest one of the tenant that has the fewest builds running.
2. Between tenants with equally many, the one whose last start lies longest ago.
3. Between those, the one whose oldest build has waited longest.

Applied again and again, as if each chosen build were running, the rules give the whole order; that
is what queue positions are counted in. Capacity only decides how much of it may start now.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from supervisor.model.ids import BuildId, Tenant


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many builds may run at once."""

    total: int
    per_tenant: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from the present state of the queue."""

    start: tuple[BuildId, ...]
    """To be started now, in this order."""
    waiting: tuple[BuildId, ...]
    """The rest, in the order in which they would start; the first has position 1."""


def plan(
    waiting: Mapping[BuildId, Tenant],
    running: Iterable[Tenant],
    last_start: Mapping[Tenant, int],
    capacity: Capacity,
) -> Plan:
    """Return what to start and in which order the rest waits.

    `waiting` may come in any order: ids sort by age. `running` names the tenant of each running
    build. `last_start` numbers the tenants' latest starts: a greater number is more recent.
    """
    lines: dict[Tenant, deque[BuildId]] = {}
    for build_id in sorted(waiting):
        lines.setdefault(waiting[build_id], deque()).append(build_id)
    busy: dict[Tenant, int] = {}
    for tenant in running:
        busy[tenant] = busy.get(tenant, 0) + 1
    free = capacity.total - sum(busy.values())

    # The heap holds one entry for each tenant that waits: (running, last start, oldest build).
    started_at = dict(last_start)
    now = max(started_at.values(), default=0)
    heap = [
        (busy.get(tenant, 0), started_at.get(tenant, 0), line[0], tenant)
        for tenant, line in lines.items()
    ]
    heapq.heapify(heap)
    start: list[BuildId] = []
    rest: list[BuildId] = []
    while heap:
        count, _, build_id, tenant = heapq.heappop(heap)
        lines[tenant].popleft()
        # Once a tenant's build has to wait, so do its later ones: count only grows.
        if free > 0 and count < capacity.per_tenant:
            free -= 1
            start.append(build_id)
        else:
            rest.append(build_id)
        now += 1
        if lines[tenant]:
            heapq.heappush(heap, (count + 1, now, lines[tenant][0], tenant))
    return Plan(tuple(start), tuple(rest))
