"""What a guest may say when: order, bounds, and nothing forged."""

from __future__ import annotations

import typing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import wire
from supervisor.errors import GuestLost
from supervisor.guest.session import (
    MAX_ERROR_CHARACTERS,
    MAX_LOCKFILE_CHARACTERS,
    MAX_LOCKFILES,
    MAX_NAME_CHARACTERS,
    MAX_OUTPUT_LINES,
    MAX_STEPS,
    MAX_STEPS_CHARACTERS,
    UNKNOWN_STEP,
    Action,
    Finished,
    Output,
    PhaseEntered,
    Refused,
    Session,
    StepChanged,
)
from supervisor.model.times import MAX_UNIX_SECONDS, rfc3339

SHA256 = "ab" * 32


def log(seq: int, data: bytes, *, step: str = "", stream: int = 1, time: float = 1.0) -> wire.Log:
    return wire.Log(seq=seq, time=time, step=step, stream=stream, data=data)


def a_step(seq: int, digest: str = "d", name: str = "RUN true", **changes: Any) -> wire.Step:
    return wire.Step(seq=seq, digest=digest, name=name, **changes)


def hear(session: Session, *messages: wire.Message | wire.Unknown) -> list[Action]:
    return [action for message in messages for action in session.receive(message)]


def contents(actions: list[Action]) -> list[tuple[str, str]]:
    return [
        (line.step, line.content)
        for action in actions
        if isinstance(action, Output)
        for line in action.lines
    ]


# -- order -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_numbers_must_grow_and_need_not_be_without_gaps(numbers: list[int]) -> None:
    session = Session()
    last = -1
    for number in numbers:
        if number > last:
            hear(session, log(number, b"x\n"))
            last = number
        else:
            with pytest.raises(GuestLost, match="after"):
                hear(session, log(number, b"x\n"))
            return


@pytest.mark.parametrize(
    "again", [log(5, b""), a_step(5), wire.BuildResult(seq=5, ok=True), log(-1, b"")]
)
def test_a_number_that_came_before_loses_the_guest_in_every_message(again: wire.Message) -> None:
    session = Session()
    hear(session, log(5, b"x"))
    with pytest.raises(GuestLost, match="after 5"):
        hear(session, again)


# -- who may say what --------------------------------------------------------------------------

FROM_A_GUEST = (wire.Log, wire.Step, wire.Status, wire.BuildResult, wire.Heartbeat, wire.Error)
NOT_FROM_A_GUEST: list[wire.Message | wire.Unknown] = [
    wire.Hello(protocol=1, agent="again"),
    wire.Config("b", "r", "t", "p", "0", 1, 1.0),
    wire.HostReady(),
    wire.GetSecrets(("npm_token",)),
    wire.SecretsResponse({}),
    wire.SourceHeader(1, "0"),
    wire.GetStatus(),
    wire.Cancel("no"),
    wire.Unknown("surprise"),
]


@pytest.mark.parametrize("message", NOT_FROM_A_GUEST, ids=lambda m: type(m).__name__)
def test_what_a_guest_may_not_say_is_refused_and_changes_nothing(
    message: wire.Message | wire.Unknown,
) -> None:
    session = Session()
    (action,) = hear(session, message)
    assert isinstance(action, Refused)
    assert session.steps == ()


def test_the_two_lists_above_hold_every_message() -> None:
    listed = {*FROM_A_GUEST, *map(type, NOT_FROM_A_GUEST)}
    assert listed == {*typing.get_args(wire.Message), wire.Unknown}


@pytest.mark.parametrize("message", [wire.Heartbeat(1.0), wire.Error("what?")])
def test_some_messages_mean_nothing(message: wire.Message) -> None:
    assert hear(Session(), message) == []


def test_a_phase_is_entered_once_until_another_one() -> None:
    session = Session()
    names = ["idle", "source", "source", "building", "nonsense", "building", "pushing", "building"]
    said = hear(session, *(wire.Status(n, 1.0, name) for n, name in enumerate(names)))
    assert said == [PhaseEntered(p) for p in ("source", "building", "pushing", "building")]


# -- output ------------------------------------------------------------------------------------


def test_lines_belong_to_steps_that_were_reported() -> None:
    session = Session()
    said = hear(session, a_step(1, "known"), log(2, b"a\n", step="known"), log(3, b"b\n", step="x"))
    assert contents(said) == [("known", "a"), (UNKNOWN_STEP, "b")]


def test_lines_of_a_step_that_was_not_reported_are_not_those_of_nobody() -> None:
    session = Session()
    said = hear(session, a_step(1, "?"), log(2, b"of the agent\n"), log(3, b"forged\n", step="x"))
    assert contents(said) == [("", "of the agent"), (UNKNOWN_STEP, "forged")]


def test_a_step_that_ends_gives_its_unfinished_line_before_its_end() -> None:
    session = Session()
    said = hear(session, a_step(1), log(2, b"no newline", step="d"), a_step(3, completed_at=2.0))
    assert [type(action) for action in said] == [StepChanged, Output, StepChanged]
    assert contents(said) == [("d", "no newline")]


def test_a_result_gives_every_unfinished_line_first() -> None:
    session = Session()
    said = hear(session, log(1, b"a"), log(2, b"b", stream=2), wire.BuildResult(3, ok=False))
    assert contents(said) == [("", "a"), ("", "b")]
    assert isinstance(said[-1], Finished)


def test_a_guest_that_is_gone_leaves_its_unfinished_lines() -> None:
    session = Session()
    hear(session, log(1, b"last words", time=7.0))
    (line,) = session.finish()
    assert (line.content, line.time) == ("last words", 7.0)
    assert session.finish() == ()


def test_a_flood_of_lines_is_handed_over_in_parts() -> None:
    said = hear(Session(), log(1, b"\n" * (3 * MAX_OUTPUT_LINES + 1)))
    sizes = [len(action.lines) for action in said if isinstance(action, Output)]
    assert sizes == [MAX_OUTPUT_LINES] * 3 + [1]


def test_a_session_that_is_muted_drops_all_further_output() -> None:
    session = Session()
    said = session.receive(log(1, b"\n" * (5 * MAX_OUTPUT_LINES)))
    assert isinstance(next(said), Output)
    session.mute()
    assert list(said) == []
    assert hear(session, log(2, b"more\n")) == []
    assert len(hear(session, a_step(3))) == 1


def test_more_log_in_a_message_than_agreed_loses_the_guest() -> None:
    hear(Session(), log(1, bytes(wire.MAX_LOG_DATA_BYTES)))
    with pytest.raises(GuestLost, match="in one message"):
        hear(Session(), log(1, bytes(wire.MAX_LOG_DATA_BYTES + 1)))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_time_can_be_written(time: float) -> None:
    session = Session()
    said = hear(session, a_step(1, started_at=time, completed_at=time), log(2, b"x\n", time=time))
    for action in said:
        if isinstance(action, Output):
            rfc3339(action.lines[0].time)
    (step,) = session.steps
    for moment in (step.started_at, step.completed_at):
        assert moment is not None
        assert 0 <= moment <= MAX_UNIX_SECONDS
        rfc3339(moment)


# -- steps -------------------------------------------------------------------------------------


def test_steps_are_numbered_in_the_order_of_first_sight() -> None:
    session = Session()
    said = hear(session, a_step(1, "a"), a_step(2, "b"), a_step(3, "a", cached=True))
    changes = [action for action in said if isinstance(action, StepChanged)]
    assert [(c.step.digest, c.number, c.is_new) for c in changes] == [
        ("a", 1, True),
        ("b", 2, True),
        ("a", 1, False),
    ]
    assert [step.digest for step in session.steps] == ["a", "b"]
    assert (session.number_of("b"), session.number_of("c")) == (2, None)


def test_a_step_that_has_not_changed_is_not_told_again() -> None:
    assert len(hear(Session(), a_step(1), a_step(2), a_step(3))) == 1


def test_names_and_errors_are_cut() -> None:
    session = Session()
    hear(session, a_step(1, name="n" * 100_000, error="e" * 100_000))
    (step,) = session.steps
    assert len(step.name) == MAX_NAME_CHARACTERS
    assert len(step.error or "") == MAX_ERROR_CHARACTERS


def test_too_many_steps_lose_the_guest() -> None:
    session = Session()
    hear(session, *(a_step(n, str(n)) for n in range(MAX_STEPS)))
    hear(session, a_step(MAX_STEPS, "0", cached=True))
    with pytest.raises(GuestLost, match="steps"):
        hear(session, a_step(MAX_STEPS + 1, "one more"))


def test_steps_that_hold_too_much_text_lose_the_guest() -> None:
    session = Session()
    name = "n" * MAX_NAME_CHARACTERS
    fitting = MAX_STEPS_CHARACTERS // MAX_NAME_CHARACTERS
    hear(session, *(a_step(n, str(n), name) for n in range(fitting)))
    # The same step may change as often as it likes: only what is kept counts.
    hear(session, *(a_step(fitting + n, "0", name, cached=n % 2 == 0) for n in range(10)))
    with pytest.raises(GuestLost, match="characters"):
        hear(session, a_step(2 * fitting, "one more", "n"))


def test_an_over_long_digest_loses_the_guest() -> None:
    with pytest.raises(GuestLost, match="digest"):
        hear(Session(), a_step(1, "d" * 129))


# -- the result --------------------------------------------------------------------------------


def test_a_result_is_bounded() -> None:
    hashes = {f"{n}/go.sum": SHA256 for n in range(2 * MAX_LOCKFILES)}
    result = wire.BuildResult(1, ok=False, error="e" * 100_000, lockfile_hashes=hashes)
    (finished,) = hear(Session(), result)
    assert isinstance(finished, Finished)
    assert len(finished.result.error) == MAX_ERROR_CHARACTERS
    assert len(finished.result.lockfile_hashes) == MAX_LOCKFILES


def test_the_paths_of_lock_files_are_bounded_together() -> None:
    hashes = {f"{n}" + "p" * 10_000: SHA256 for n in range(100)}
    (finished,) = hear(Session(), wire.BuildResult(1, ok=True, lockfile_hashes=hashes))
    assert isinstance(finished, Finished)
    kept = finished.result.lockfile_hashes
    assert 0 < sum(map(len, kept)) <= MAX_LOCKFILE_CHARACTERS


@pytest.mark.parametrize("digest", ["", "x", SHA256.upper(), SHA256 + "\n", f"sha256:{SHA256}"])
def test_a_lock_files_hash_that_is_none_is_dropped(digest: str) -> None:
    result = wire.BuildResult(1, ok=True, lockfile_hashes={"a": digest, "go.sum": SHA256})
    (finished,) = hear(Session(), result)
    assert isinstance(finished, Finished)
    assert finished.result == replace(result, lockfile_hashes={"go.sum": SHA256})
