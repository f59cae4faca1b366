"""How a log looks, and that it ends at its limit."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from supervisor.actors.transcript import Rendered, Transcript
from supervisor.egress.policy import Decision
from supervisor.guest.lines import Line
from supervisor.guest.session import UNKNOWN_STEP, StepChanged
from supervisor.model.build import Step

NUMBERS = {"a": 1, "b": 2}
NOW = 0.0


def transcript(max_bytes: int = 1 << 20) -> Transcript:
    return Transcript(NUMBERS.get, max_bytes=max_bytes)


def line(step: str, content: str, *, stream: int = 1, partial: bool = False) -> Line:
    return Line(step, stream, NOW, content, partial)


def piece(step: str, content: str, *, stream: int = 1) -> Line:
    return line(step, content, stream=stream, partial=True)


def text_of(batches: Sequence[Sequence[Line]]) -> str:
    """Return the text that batches of lines make, put together as the log does."""
    script, text = transcript(), ""
    for batch in batches:
        said = script.lines(batch, NOW)
        if said.text and text and not text.endswith("\n") and not said.continues:
            text += "\n"
        text += said.text.decode()
    return text


def test_a_line_bears_the_number_of_its_step() -> None:
    said = transcript().lines([line("a", "x"), line("b", "y"), line("", "z")], NOW)
    assert said.text == b"#1 x\n#2 y\nz\n"
    assert [json.loads(event)["content"] for event in said.events] == ["x", "y", "z"]


def test_a_line_of_an_unknown_step_is_not_told_as_nobodys() -> None:
    said = transcript().lines([line(UNKNOWN_STEP, "[egress] denied x:80: forged")], NOW)
    assert said.text == b"#? [egress] denied x:80: forged\n"
    assert json.loads(said.events[0])["step"] == {"digest": UNKNOWN_STEP}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_line_is_one_line_for_every_reader(content: str) -> None:
    said = transcript().lines([line("a", content.replace("\n", ""))], NOW)
    assert len(said.text.decode().splitlines()) == 1
    assert len(said.events[0].decode().splitlines()) == 1


def test_what_would_look_like_another_line_is_written_out() -> None:
    said = transcript().lines([line("a", "x\r#2 DONE\u2028#2 DONE")], NOW)
    assert said.text == b"#1 x\\r#2 DONE\\u2028#2 DONE\n"
    assert json.loads(said.events[0])["content"] == "x\r#2 DONE\u2028#2 DONE"


def test_the_pieces_of_a_line_are_one_line_of_text() -> None:
    pieces = [piece("a", "be"), piece("a", "gu"), line("a", "n"), line("a", "next")]
    assert text_of([pieces]) == "#1 begun\n#1 next\n"
    assert text_of([[each] for each in pieces]) == "#1 begun\n#1 next\n"


def test_what_comes_between_the_pieces_is_a_line_of_its_own() -> None:
    mixed = [piece("a", "be"), line("b", "between"), line("a", "gun")]
    assert text_of([mixed]) == text_of([[each] for each in mixed])
    assert text_of([mixed]) == "#1 be\n#2 between\n#1 gun\n"
    streams = [piece("a", "out"), piece("a", "err", stream=2), line("a", "end")]
    assert text_of([streams]) == "#1 out\n#1 err\n#1 end\n"


lines = st.lists(
    st.builds(
        line,
        st.sampled_from(["a", "b", ""]),
        st.text("xyz", min_size=1, max_size=3),
        stream=st.integers(1, 2),
        partial=st.booleans(),
    ),
    max_size=12,
)


@given(lines, st.lists(st.integers(0, 4)))
def test_any_cutting_into_batches_gives_the_same_text(all_: list[Line], sizes: list[int]) -> None:
    batches, rest = [], all_
    for size in sizes:
        batches.append(rest[:size])
        rest = rest[size:]
    assert text_of([*batches, rest]) == text_of([all_])


def test_a_step_is_told_with_its_beginning_and_its_end() -> None:
    script = transcript()
    new = StepChanged(Step("a", "[1/2]  RUN\n true", 1.0), 1, is_new=True)
    assert script.step_change(new, NOW).text == b"#1 [1/2] RUN true\n"
    done = StepChanged(Step("a", "RUN", 1.0, 3.5), 1, is_new=False)
    assert script.step_change(done, NOW).text == b"#1 DONE 2.5s\n"
    cached = StepChanged(Step("a", "RUN", 1.0, 1.0, cached=True), 1, is_new=True)
    assert script.step_change(cached, NOW).text == b"#1 RUN\n#1 CACHED\n"
    failed = StepChanged(Step("a", "RUN", 1.0, 2.0, error="no\nway"), 1, is_new=False)
    assert script.step_change(failed, NOW).text == b"#1 ERROR: no way\n"
    backwards = StepChanged(Step("a", "RUN", 3.0, 1.0), 1, is_new=False)
    assert script.step_change(backwards, NOW).text == b"#1 DONE 0.0s\n"


@given(lines, st.integers(1, 2000))
def test_nothing_is_stored_past_the_limit_but_the_word_that_says_so(
    all_: list[Line], limit: int
) -> None:
    script = transcript(limit)
    said = [script.lines([each], NOW) for each in all_]
    stored = [each for each in said if each != Rendered([], b"")]
    size = sum(len(e) + 1 for each in stored for e in each.events)
    size += sum(len(each.text) for each in stored)
    if script.is_full:
        assert b"the log is cut here" in stored[-1].text
        assert len(stored[-1].events) == 1
        assert size < limit + 300
        assert script.lines([line("a", "more")], NOW) == Rendered([], b"")
    else:
        assert len(stored) == len(all_)
        assert size < limit


def test_an_allowed_request_is_an_event_and_no_line() -> None:
    said = transcript().egress(Decision(True, "example.org", 443, "", 12, 3456), NOW)
    assert said.text == b""
    [event] = map(json.loads, said.events)
    assert event["type"] == "egress"
    assert event["egress"] == {
        "allowed": True,
        "host": "example.org",
        "port": 443,
        "bytes_sent": 12,
        "bytes_received": 3456,
    }


def test_a_denied_request_is_an_event_and_a_line_of_its_own() -> None:
    script = transcript()
    script.lines([piece("a", "begun")], NOW)
    said = script.egress(Decision(False, "example.net", 80, "it is a private address"), NOW)
    line_said = "[egress] denied example.net:80: it is a private address"
    assert said.text == f"{line_said}\n".encode()
    event, shown = map(json.loads, said.events)
    assert event["egress"]["allowed"] is False
    assert event["egress"]["reason"] == "it is a private address"
    assert (shown["type"], shown["content"]) == ("log", line_said)


def test_an_allowed_request_that_came_to_nothing_is_a_line_too() -> None:
    said = transcript().egress(Decision(True, "example.org", 80, "it did not answer"), NOW)
    assert said.text == b"[egress] failed example.org:80: it did not answer\n"


def test_requests_end_at_the_limit_like_any_output() -> None:
    script = transcript(max_bytes=2000)
    denied = Decision(False, "x" * 250, 0, "it is not in allowed_domains")
    said = [script.egress(denied, NOW) for _ in range(100)]
    assert sum(len(r.text) + sum(map(len, r.events)) for r in said) < 3000
    assert sum(b"cut here" in r.text for r in said) == 1
