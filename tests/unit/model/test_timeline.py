"""An ended build's phases are laid out where they were."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from supervisor.model.build import Build, Phase, Reason
from supervisor.model.lifecycle import (
    CancelRequested,
    Ended,
    Interrupted,
    PushBegun,
    Started,
    Succeeded,
    step,
)
from supervisor.model.timeline import EARLIER_ATTEMPTS, Stretch, timeline
from tests.samples import CREATED_AT, DIGEST, PROVENANCE, a_build

SPENT = {Phase.LEASE: 1.0, Phase.BOOT: 4.0, Phase.SOURCE: 2.0, Phase.BUILD: 8.0, Phase.PUSH: 3.0}
SUCCEEDED = Succeeded(DIGEST, PROVENANCE, SPENT)


def told(build: Build) -> list[tuple[str, float, float]]:
    """Return the stretches in seconds since the build was made."""
    return [(s.name, s.start - CREATED_AT, s.end - CREATED_AT) for s in timeline(build)]


def at(seconds: float) -> float:
    return CREATED_AT + seconds


def test_phases_follow_one_another_from_the_first_start() -> None:
    build = step(a_build(), Started(), at(10))
    build = step(step(build, PushBegun(), at(25)), SUCCEEDED, at(29))
    assert told(build) == [
        ("queue", 0, 10),
        ("lease", 10, 11),
        ("boot", 11, 15),
        ("source", 15, 17),
        ("build", 17, 25),
        ("push", 25, 28),
    ]


def test_only_phases_that_were_reached_are_there() -> None:
    build = step(a_build(), Started(), at(10))
    build = step(build, Ended(Reason.BUILDER_LOST, "", {Phase.LEASE: 2.0}), at(13))
    assert told(build) == [("queue", 0, 10), ("lease", 10, 12)]


def test_a_build_that_never_started_has_only_waited() -> None:
    assert told(step(a_build(), CancelRequested(), at(7))) == [("queue", 0, 7)]


def test_attempts_before_the_last_one_are_one_stretch() -> None:
    build = step(a_build(), Started(), at(10))
    build = step(build, Interrupted(), at(40))
    build = step(build, Started(), at(50))
    build = step(step(build, PushBegun(), at(65)), SUCCEEDED, at(68))
    assert told(build) == [
        ("queue", 0, 10),
        (EARLIER_ATTEMPTS, 10, 40),
        ("queue", 40, 50),
        ("lease", 50, 51),
        ("boot", 51, 55),
        ("source", 55, 57),
        ("build", 57, 65),
        ("push", 65, 68),
    ]


def test_a_build_that_is_cancelled_while_it_waits_again_has_waited_twice() -> None:
    build = step(step(a_build(), Started(), at(10)), Interrupted(), at(40))
    assert told(step(build, CancelRequested(), at(45)))[1:] == [
        (EARLIER_ATTEMPTS, 10, 40),
        ("queue", 40, 45),
    ]


@given(
    st.dictionaries(st.sampled_from(Phase), st.floats(0, 1e6)),
    st.none() | st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
)
def test_whatever_the_clock_did_no_stretch_but_a_wait_ends_before_it_starts(
    phases: dict[Phase, float], started: float | None, queued: float, completed: float
) -> None:
    """Waits are between moments of the wall clock, which may be set back."""
    build = replace(
        a_build(),
        started_at=None if started is None else at(started),
        queued_at=at(queued),
        completed_at=at(completed),
        phases=phases,
    )
    found = timeline(build)
    assert all(isinstance(stretch, Stretch) for stretch in found)
    assert all(s.end >= s.start for s in found[1:])
    assert [s.start for s in found[1:]] == [s.end for s in found[:-1]]
