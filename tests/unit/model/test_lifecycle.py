"""The life of a build: every (status, event), and random lives."""

from __future__ import annotations

import itertools
import typing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.model.build import Build, ErrorReason, Phase, Reason, Status
from supervisor.model.lifecycle import (
    MAX_LOST_ATTEMPTS,
    CancelRequested,
    Ended,
    Event,
    Interrupted,
    PushBegun,
    Started,
    Succeeded,
    step,
)
from tests.samples import CREATED_AT, DIGEST, PROVENANCE, a_build

STARTED = Started()
PUSH_BEGUN = PushBegun()
SUCCEEDED = Succeeded(DIGEST, PROVENANCE, {Phase.PUSH: 1.0})
FAILED = Ended(Reason.BUILD_FAILED, "step 2 failed", {Phase.BUILD: 2.0})
CANCELLED = Ended(Reason.CANCELLED, "cancelled", {})
CANCEL_REQUESTED = CancelRequested()
INTERRUPTED = Interrupted()
PLANNED = Interrupted(is_planned=True)
EVENTS: dict[str, Event] = {
    "started": STARTED,
    "push begun": PUSH_BEGUN,
    "succeeded": SUCCEEDED,
    "failed": FAILED,
    "cancelled": CANCELLED,
    "cancel requested": CANCEL_REQUESTED,
    "interrupted": INTERRUPTED,
    "interrupted as planned": PLANNED,
}

Q, B, P = Status.QUEUED, Status.BUILDING, Status.PUSHING
LATER = CREATED_AT + 60

# What follows from an event in a status that is not final. None: a broken promise of the caller.
TABLE: dict[tuple[Status, str], Status | None] = {
    (Q, "started"): Status.BUILDING,
    (Q, "push begun"): None,
    (Q, "succeeded"): None,
    (Q, "failed"): Status.FAILED,
    (Q, "cancelled"): Status.CANCELLED,
    (Q, "cancel requested"): Status.CANCELLED,
    (Q, "interrupted"): Status.QUEUED,
    (Q, "interrupted as planned"): Status.QUEUED,
    (B, "started"): None,
    (B, "push begun"): Status.PUSHING,
    (B, "succeeded"): None,
    (B, "failed"): Status.FAILED,
    (B, "cancelled"): Status.CANCELLED,
    (B, "cancel requested"): Status.BUILDING,
    (B, "interrupted"): Status.QUEUED,
    (B, "interrupted as planned"): Status.QUEUED,
    (P, "started"): None,
    (P, "push begun"): Status.PUSHING,
    (P, "succeeded"): Status.READY,
    (P, "failed"): Status.FAILED,
    (P, "cancelled"): Status.CANCELLED,
    (P, "cancel requested"): Status.PUSHING,
    (P, "interrupted"): Status.QUEUED,
    (P, "interrupted as planned"): Status.QUEUED,
}
LEGAL = {(before, after) for (before, _), after in TABLE.items() if after is not None}


def in_status(status: Status) -> Build:
    attempt = 0 if status is Q else 1
    started_at = None if status is Q else CREATED_AT + 1
    return a_build(status=status, attempt=attempt, started_at=started_at)


def test_the_table_names_every_status_that_is_not_final_and_every_event() -> None:
    present = [status for status in Status if not status.is_final]
    assert set(TABLE) == set(itertools.product(present, EVENTS))
    assert {type(event) for event in EVENTS.values()} == set(typing.get_args(Event))


@pytest.mark.parametrize(("status", "name"), TABLE)
def test_each_event_leads_where_the_table_says(status: Status, name: str) -> None:
    build, event = in_status(status), EVENTS[name]
    expected = TABLE[status, name]
    if expected is None:
        with pytest.raises(AssertionError, match=build.id):
            step(build, event, LATER)
        return
    after = step(build, event, LATER)
    assert after.status is expected
    assert (after.completed_at == LATER) is expected.is_final
    if expected in (Status.FAILED, Status.CANCELLED):
        assert after.error
        assert after.error_code is not None
    else:
        assert after.error_code is None


@pytest.mark.parametrize("status", [status for status in Status if status.is_final])
@pytest.mark.parametrize("name", EVENTS)
def test_nothing_changes_a_build_that_has_ended(status: Status, name: str) -> None:
    build = a_build(status=status, completed_at=LATER)
    assert step(build, EVENTS[name], LATER + 1) is build


def test_a_start_counts_the_attempt_and_keeps_the_first_starting_time() -> None:
    first = step(a_build(), STARTED, CREATED_AT + 5)
    assert (first.attempt, first.started_at) == (1, CREATED_AT + 5)
    again = step(step(first, INTERRUPTED, CREATED_AT + 10), STARTED, CREATED_AT + 12)
    assert (again.attempt, again.started_at) == (2, CREATED_AT + 5)


def test_the_time_in_the_queue_adds_up_over_attempts() -> None:
    first = step(a_build(), STARTED, CREATED_AT + 5)
    back = step(first, INTERRUPTED, CREATED_AT + 10)
    assert step(back, STARTED, CREATED_AT + 12).phases[Phase.QUEUE] == 7
    assert step(back, CANCEL_REQUESTED, CREATED_AT + 13).phases[Phase.QUEUE] == 8


def test_a_clock_that_goes_back_gives_no_negative_wait() -> None:
    assert step(a_build(), STARTED, CREATED_AT - 100).phases[Phase.QUEUE] == 0


def test_phases_of_an_ending_join_those_before() -> None:
    running = step(a_build(), STARTED, CREATED_AT + 5)
    assert step(running, FAILED, LATER).phases == {Phase.QUEUE: 5, Phase.BUILD: 2.0}


def test_the_last_attempt_that_is_interrupted_loses_the_build() -> None:
    build = in_status(B)
    for lost_attempts in range(1, MAX_LOST_ATTEMPTS):
        back = step(build, INTERRUPTED, LATER)
        assert (back.status, back.lost_attempts) == (Q, lost_attempts)
        build = step(back, STARTED, LATER)
    lost = step(build, INTERRUPTED, LATER)
    assert (lost.status, lost.error_code) == (Status.FAILED, Reason.BUILDER_LOST)
    assert lost.error_reason is ErrorReason.ATTEMPTS_LOST
    assert lost.lost_attempts == MAX_LOST_ATTEMPTS


@pytest.mark.parametrize("interrupted", [INTERRUPTED, PLANNED])
@pytest.mark.parametrize("lost", range(MAX_LOST_ATTEMPTS))
def test_an_interrupted_build_that_was_to_be_cancelled_is_cancelled(
    lost: int, interrupted: Interrupted
) -> None:
    wanted = step(replace(in_status(B), lost_attempts=lost), CANCEL_REQUESTED, LATER)
    assert wanted.cancel_requested
    ended = step(wanted, interrupted, LATER)
    assert (ended.status, ended.error_code) == (Status.CANCELLED, Reason.CANCELLED)


def test_a_success_keeps_what_was_made() -> None:
    ready = step(in_status(P), SUCCEEDED, LATER)
    assert (ready.image_digest, ready.provenance) == (DIGEST, PROVENANCE)


@given(st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.floats(0, 1000)), max_size=40))
def test_a_random_life_keeps_every_promise(life: list[tuple[str, float]]) -> None:
    build = a_build()
    now = CREATED_AT
    planned = 0
    for name, seconds in life:
        now += seconds
        before, event = build, EVENTS[name]
        if TABLE.get((before.status, name), before.status) is None:
            with pytest.raises(AssertionError):
                step(before, event, now)
            continue
        build = step(before, event, now)
        if before.status.is_final:
            assert build == before
            continue
        planned += event is PLANNED
        interrupted_for_good = isinstance(event, Interrupted) and build.status.is_final
        assert (before.status, build.status) in LEGAL or interrupted_for_good
        assert build.attempt <= MAX_LOST_ATTEMPTS + planned
        assert before.lost_attempts <= build.lost_attempts <= MAX_LOST_ATTEMPTS
        assert before.attempt <= build.attempt <= before.attempt + 1
        assert build.status.is_final == (build.completed_at is not None)
        assert (build.status in (B, P)) <= (build.started_at is not None)
        assert (build.status is Status.READY) == (build.image_digest is not None)
        assert all(seconds >= 0 for seconds in build.phases.values())
        if event is INTERRUPTED and before.status is not Q:
            is_last = before.lost_attempts == MAX_LOST_ATTEMPTS - 1
            lost = Reason.BUILDER_LOST if is_last else None
            assert build.error_code is (Reason.CANCELLED if before.cancel_requested else lost)


def test_a_planned_stop_loses_nothing_however_often() -> None:
    build = a_build()
    for _ in range(2 * MAX_LOST_ATTEMPTS):
        build = step(step(build, STARTED, LATER), PLANNED, LATER)
    assert (build.status, build.lost_attempts) == (Q, 0)
    assert step(step(build, STARTED, LATER), INTERRUPTED, LATER).status is Q
