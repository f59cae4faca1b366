"""What the pool boots and retires: the rules, one by one, and what holds for every state."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from supervisor.actors.pool_plan import (
    MAX_RETRY_SECONDS,
    PoolLimits,
    PoolPlan,
    PoolState,
    Waiting,
    has_idle_processors,
    plan_pool,
    retry_seconds,
)
from supervisor.model.ids import MachineId

NOW = 1000.0
LIMITS = PoolLimits(size=2, capacity=4, machine_cpus=2, host_cpus=8, max_age_seconds=100.0)
NOTHING = PoolState([], [], failures=0, failed_at=0.0, is_draining=False)


def up(name: str, age: float = 1.0) -> Waiting:
    return Waiting(MachineId(name), is_up=True, since=NOW - age)


def booting(name: str, age: float = 1.0) -> Waiting:
    return Waiting(MachineId(name), is_up=False, since=NOW - age)


def plan(
    *waiting: Waiting, leased: tuple[int, ...] = (), failures: int = 0, limits: PoolLimits = LIMITS
) -> PoolPlan:
    return plan_pool(PoolState(waiting, leased, failures, NOW, is_draining=False), limits, NOW)


def test_an_empty_pool_boots_a_machine() -> None:
    assert plan() == PoolPlan((), True, math.inf)


def test_one_machine_boots_at_a_time() -> None:
    assert not plan(booting("a")).boot
    assert plan(up("a")).boot


def test_a_full_pool_waits_for_the_oldest_to_grow_too_old() -> None:
    assert plan(up("a", 30), up("b", 10)) == PoolPlan((), False, NOW - 30 + 100)


def test_a_pool_of_no_machines_does_nothing() -> None:
    limits = PoolLimits(0, 4, 2, 8, 100.0)
    assert plan_pool(NOTHING, limits, NOW) == PoolPlan((), False, math.inf)


def test_what_is_too_old_is_retired_and_replaced() -> None:
    assert plan(up("old", 100), up("new", 1)) == PoolPlan((MachineId("old"),), True, NOW + 99)


def test_a_slow_boot_is_not_old_age() -> None:
    assert plan(booting("slow", 1000)).retire == ()


def test_builds_leave_less_room_and_what_is_not_up_goes_first() -> None:
    assert plan(up("a"), booting("b"), leased=(1, 1, 1)).retire == ("b",)
    assert set(plan(up("a"), booting("b"), leased=(1, 1, 1, 1)).retire) == {"a", "b"}


def test_of_two_that_are_up_the_older_goes() -> None:
    assert plan(up("old", 50), up("new", 5), leased=(1, 1, 1)).retire == ("old",)


def test_no_boot_takes_processors_from_builds() -> None:
    assert plan(leased=(2, 4)).boot
    assert not plan(leased=(2, 5)).boot


def test_a_small_host_boots_only_while_no_build_runs() -> None:
    limits = PoolLimits(1, 2, machine_cpus=2, host_cpus=1, max_age_seconds=100.0)
    assert plan(limits=limits).boot
    assert not plan(leased=(1,), limits=limits).boot


def test_after_a_failure_the_next_boot_waits_longer_each_time() -> None:
    assert plan(failures=1) == PoolPlan((), False, NOW + 1)
    assert plan(failures=4) == PoolPlan((), False, NOW + 8)
    assert retry_seconds(0) == 0
    assert retry_seconds(1_000_000) == MAX_RETRY_SECONDS


def test_a_stopping_daemon_keeps_nothing() -> None:
    state = PoolState([up("a"), booting("b")], [1], 0, 0.0, is_draining=True)
    assert plan_pool(state, LIMITS, NOW) == PoolPlan((up("a").id, up("b").id), False, math.inf)


MACHINES = st.lists(
    st.builds(
        lambda number, is_up, age: Waiting(MachineId(f"m{number}"), is_up, NOW - age),
        st.integers(0, 30),
        st.booleans(),
        st.floats(0, 200),
    ),
    max_size=8,
    unique_by=lambda machine: machine.id,
)
STATES = st.builds(
    PoolState,
    MACHINES,
    st.lists(st.integers(1, 8), max_size=8),
    st.integers(0, 100),
    st.floats(0, NOW),
    st.booleans(),
)
SOME_LIMITS = st.builds(
    PoolLimits,
    st.integers(0, 5),
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 32),
    st.floats(1, 150),
)


@given(STATES, SOME_LIMITS)
def test_whatever_the_state_the_plan_keeps_every_bound(
    state: PoolState, limits: PoolLimits
) -> None:
    plan = plan_pool(state, limits, NOW)
    kept = [machine for machine in state.waiting if machine.id not in plan.retire]
    assert set(plan.retire) <= {machine.id for machine in state.waiting}
    assert len(kept) + plan.boot <= limits.size
    assert len(kept) + plan.boot + len(state.leased_cpus) <= max(
        limits.capacity, len(state.leased_cpus)
    )
    assert all(
        not machine.is_up or machine.since + limits.max_age_seconds > NOW for machine in kept
    )
    assert sum(not machine.is_up for machine in kept) + plan.boot <= max(
        1, sum(not machine.is_up for machine in state.waiting)
    )
    if plan.boot:
        assert not state.is_draining
        assert all(machine.is_up for machine in kept)
        assert has_idle_processors(state.leased_cpus, limits)
    assert plan.look_again_at > NOW, "the actor would spin"


@given(STATES, SOME_LIMITS)
def test_doing_what_the_plan_says_leaves_nothing_to_retire(
    state: PoolState, limits: PoolLimits
) -> None:
    first = plan_pool(state, limits, NOW)
    kept = [machine for machine in state.waiting if machine.id not in first.retire]
    if first.boot:
        kept.append(Waiting(MachineId("new"), is_up=False, since=NOW))
    after = PoolState(kept, state.leased_cpus, state.failures, state.failed_at, state.is_draining)
    again = plan_pool(after, limits, NOW)
    assert again.retire == ()
    assert not again.boot
