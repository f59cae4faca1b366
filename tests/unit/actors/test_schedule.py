"""The queue's decision: thousands of random states, and random histories played to their end."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.actors.schedule import Capacity, Plan, plan
from supervisor.model.ids import BuildId, Tenant
from tests.samples import build_id

TENANTS = [Tenant(name) for name in ("ada", "bob", "cyn", "dan")]

capacities = st.builds(Capacity, total=st.integers(1, 6), per_tenant=st.integers(1, 6))
waitings = st.dictionaries(st.integers(1, 200).map(build_id), st.sampled_from(TENANTS), max_size=30)
runnings = st.lists(st.sampled_from(TENANTS), max_size=8)
last_starts = st.dictionaries(st.sampled_from(TENANTS), st.integers(1, 50))


def a(number: int) -> BuildId:
    return build_id(number)


def lines_of(
    order: tuple[BuildId, ...], waiting: dict[BuildId, Tenant]
) -> dict[Tenant, list[BuildId]]:
    lines: dict[Tenant, list[BuildId]] = {}
    for waits in order:
        lines.setdefault(waiting[waits], []).append(waits)
    return lines


@settings(max_examples=200)
@given(waitings, runnings, last_starts, capacities)
def test_any_state_gives_a_plan_that_keeps_the_rules(
    waiting: dict[BuildId, Tenant],
    running: list[Tenant],
    last_start: dict[Tenant, int],
    capacity: Capacity,
) -> None:
    before = dict(last_start)
    decision = plan(waiting, running, last_start, capacity)
    assert last_start == before

    # Every build is either started or waits, once.
    assert sorted(decision.start + decision.waiting) == sorted(waiting)

    # Never over capacity; what runs over it already (a smaller limit since) starts nothing.
    counts = Counter(running)
    counts.update(waiting[started] for started in decision.start)
    assert len(decision.start) <= max(0, capacity.total - len(running))
    for tenant in {waiting[started] for started in decision.start}:
        assert counts[tenant] <= capacity.per_tenant

    # Nothing is left waiting that could start.
    if len(running) + len(decision.start) < capacity.total:
        assert all(counts[waiting[waits]] >= capacity.per_tenant for waits in decision.waiting)

    # First come, first served within a tenant, over both parts.
    for line in lines_of(decision.start + decision.waiting, waiting).values():
        assert line == sorted(line)


@settings(max_examples=100)
@given(waitings, runnings, last_starts, capacities)
def test_the_shown_order_is_the_order_in_which_builds_start(
    waiting: dict[BuildId, Tenant],
    running: list[Tenant],
    last_start: dict[Tenant, int],
    capacity: Capacity,
) -> None:
    shown = plan(waiting, running, last_start, capacity)
    assert plan(dict(reversed(waiting.items())), running, last_start, capacity) == shown

    # Start them one by one with all the room there is, as the queue does: the same order.
    boundless = Capacity(10_000, 10_000)
    left, busy, starts = dict(waiting), list(running), dict(last_start)
    number = max(starts.values(), default=0)
    order = []
    while left:
        first = plan(left, busy, starts, boundless).start[0]
        tenant = left.pop(first)
        order.append(first)
        busy.append(tenant)
        number += 1
        starts[tenant] = number
    assert tuple(order) == plan(waiting, running, last_start, boundless).start

    # With less room, those that start come first, and the rest keep that order among themselves.
    rank = {waits: at for at, waits in enumerate(order)}
    assert list(shown.start) == sorted(shown.start, key=rank.__getitem__)
    assert list(shown.waiting) == sorted(shown.waiting, key=rank.__getitem__)


@dataclass
class World:
    """A queue and its machines, played by hand: the queue actor's bookkeeping without the actor."""

    capacity: Capacity
    waiting: dict[BuildId, Tenant] = field(default_factory=dict)
    running: dict[BuildId, Tenant] = field(default_factory=dict)
    last_start: dict[Tenant, int] = field(default_factory=dict)
    started: list[BuildId] = field(default_factory=list)
    starts: int = 0
    submitted: int = 0

    def submit(self, tenant: Tenant) -> BuildId:
        self.submitted += 1
        new = build_id(self.submitted)
        self.waiting[new] = tenant
        return new

    def turn(self) -> Plan:
        while True:
            decision = plan(self.waiting, self.running.values(), self.last_start, self.capacity)
            if not decision.start:
                return decision
            first = decision.start[0]
            tenant = self.waiting.pop(first)
            self.running[first] = tenant
            self.starts += 1
            self.last_start[tenant] = self.starts
            self.started.append(first)


def test_random_histories_never_break_a_limit_and_starve_nobody() -> None:
    for seed in range(1500):
        chance = random.Random(seed)
        world = World(Capacity(chance.randint(1, 6), chance.randint(1, 6)))
        for _ in range(chance.randint(1, 30)):
            if chance.random() < 0.6:
                world.submit(chance.choice(TENANTS))
            elif world.running:
                del world.running[chance.choice(list(world.running))]
            world.turn()
            assert len(world.running) <= world.capacity.total, seed
            most = max(Counter(world.running.values()).values(), default=0)
            assert most <= world.capacity.per_tenant, seed
        while world.running:
            del world.running[chance.choice(list(world.running))]
            world.turn()
        assert not world.waiting, seed
        assert sorted(world.started) == [build_id(n + 1) for n in range(world.submitted)], seed


@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_tenant_that_floods_delays_another_by_at_most_a_round(total: int) -> None:
    flooder, other = TENANTS[:2]
    for seed in range(100):
        chance = random.Random(seed)
        world = World(Capacity(total, total))
        for _ in range(10):
            world.submit(flooder)
        world.turn()
        wanted = world.submit(other)
        for _ in range(total):
            if wanted in world.running:
                break
            world.submit(flooder)
            del world.running[chance.choice(list(world.running))]
            world.turn()
        assert wanted in world.started, seed


@pytest.mark.parametrize("tenants", [2, 3, 4])
@pytest.mark.parametrize("total", [1, 2, 3, 4])
def test_tenants_that_always_wait_start_equally_often(total: int, tenants: int) -> None:
    world = World(Capacity(total, total))
    owner = {world.submit(name): name for name in TENANTS[:tenants] for _ in range(30)}
    world.turn()
    for _ in range(25):
        del world.running[next(iter(world.running))]  # all builds take equally long
        world.turn()
    starts = Counter(owner[started] for started in world.started)
    assert max(starts.values()) - min(starts.values()) <= 1
    assert len(starts) == tenants


def test_the_fewest_running_come_first_then_the_longest_ago_then_the_oldest() -> None:
    ada, bob, cyn, dan = TENANTS
    waiting = {a(1): ada, a(2): bob, a(3): cyn, a(4): dan}
    decision = plan(waiting, [ada], {bob: 7, cyn: 3}, Capacity(10, 10))
    # dan never started anything, cyn longer ago than bob; ada has one running.
    assert decision.start == (a(4), a(3), a(2), a(1))


def test_the_third_of_three_waits_at_position_one_of_two() -> None:
    waiting = {a(n): TENANTS[0] for n in (1, 2, 3)}
    assert plan(waiting, [], {}, Capacity(2, 2)) == Plan((a(1), a(2)), (a(3),))


def test_nothing_waits_in_an_empty_queue() -> None:
    assert plan({}, [TENANTS[0]], {}, Capacity(1, 1)) == Plan((), ())
