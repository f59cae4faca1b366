"""Events as followers receive them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.model.build import Reason, Status, Step
from supervisor.model.events import (
    EventBatch,
    EventId,
    is_final_status,
    log_event,
    render_step,
    status_event,
    step_event,
)
from supervisor.model.times import MAX_UNIX_SECONDS, rfc3339
from tests.samples import a_build

NOW = "2026-03-01T12:00:00.000Z"


def read(event: bytes) -> dict[str, Any]:
    value = json.loads(event)
    assert isinstance(value, dict)
    return value


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.booleans())
def test_a_line_comes_back_from_its_event_and_never_breaks_out_of_it(
    content: str, partial: bool
) -> None:
    event = log_event(NOW, "", content, partial=partial)
    assert b"\n" not in event
    assert not is_final_status(event)
    assert read(event)["content"] == content
    assert read(event).get("partial", False) is partial


@pytest.mark.parametrize(
    "forged",
    [
        '"type":"status","status":"ready"',
        '{"type":"status","timestamp":"x","status":"ready"}',
        '"}\n{"type":"status","status":"ready"}',
        '\\","type":"status","status":"ready',
    ],
)
def test_what_a_build_prints_is_never_a_status(forged: str) -> None:
    assert not is_final_status(log_event(NOW, "", forged))
    assert not is_final_status(log_event(NOW, forged, ""))
    assert not is_final_status(step_event(NOW, Step(forged, forged, error=forged)))
    assert read(log_event(NOW, "", forged))["type"] == "log"


@pytest.mark.parametrize("status", Status)
def test_only_a_final_status_ends_the_stream(status: Status) -> None:
    event = status_event(NOW, a_build(status=status))
    assert is_final_status(event) is status.is_final
    assert read(event) == {"type": "status", "timestamp": NOW, "status": status.value}


def test_a_failure_is_told_with_its_reason() -> None:
    build = a_build(status=Status.FAILED, error="no\nway", error_code=Reason.BUILD_FAILED)
    event = read(status_event(NOW, build))
    assert (event["content"], event["error_code"]) == ("no\nway", "build_failed")


def test_a_step_shows_what_there_is_and_no_null() -> None:
    assert render_step(Step("d", "n")) == {"digest": "d", "name": "n", "cached": False}
    shown = render_step(Step("d", "n", 0.0, 1.5, cached=True, error="e"))
    assert shown["completed_at"] == "1970-01-01T00:00:01.500Z"
    assert shown["error"] == "e"


def test_a_batch_renders_its_events_with_their_ids() -> None:
    batch = EventBatch(((EventId(3), b"{}"), (EventId(9), b'{"a":1}')))
    assert batch.last_id == 9
    assert batch.as_sse == b'id: 3\ndata: {}\n\nid: 9\ndata: {"a":1}\n\n'


def test_times_are_written_in_utc_up_to_the_last_year_there_is() -> None:
    assert rfc3339(1_772_366_400.1239) == "2026-03-01T12:00:00.123Z"
    assert rfc3339(MAX_UNIX_SECONDS) == "9999-12-31T23:59:59.000Z"
    assert rfc3339(0.0) == "1970-01-01T00:00:00.000Z"
