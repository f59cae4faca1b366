"""Tables, templates and errors."""

from __future__ import annotations

import io

from supervisor.ctl.errors import ApiError, UsageError
from supervisor.ctl.output import Output


def make() -> tuple[Output, io.StringIO, io.StringIO]:
    data, messages = io.StringIO(), io.StringIO()
    return Output(data, messages), data, messages


def test_a_table_is_aligned_by_what_characters_take_and_never_cut() -> None:
    out, data, _ = make()
    out.table(["A", "B"], [["日本", "x" * 300], ["é", ""]])
    assert data.getvalue() == f"A     B\n日本  {'x' * 300}\né\n"


def test_a_table_shows_control_characters_as_text() -> None:
    out, data, _ = make()
    out.table(["A"], [["x\ny\x1b[2J"]])
    assert data.getvalue() == "A\nx\\x0ay\n"


def test_json_is_one_line_for_a_program() -> None:
    out, data, _ = make()
    out.json({"a": ["é"]})
    assert data.getvalue() == '{"a": ["é"]}\n'


def test_an_error_is_its_sentence_its_details_and_what_to_do() -> None:
    out, data, messages = make()
    out.error(UsageError("no \x1b[2Jgood", hint="do better"))
    out.error(ApiError(429, "queue_full", "full", details=["full", "d"], retry_after_seconds=5))
    assert data.getvalue() == ""
    assert messages.getvalue() == (
        "hypeman-ctl: no good\n  do better\nhypeman-ctl: full\n  d\n  try again in 5 s\n"
    )
