"""Progress, plain and live, from the events of a build."""

from __future__ import annotations

import io
from typing import Any

from supervisor.ctl.board import Board
from supervisor.ctl.live import LiveView
from supervisor.ctl.model import Event, parse_event
from supervisor.ctl.plain import PlainView


def event(**raw: Any) -> Event:
    parsed = parse_event("1", {"timestamp": "2026-01-01T00:00:10.000Z", **raw})
    assert parsed is not None
    return parsed


def step(digest: str, name: str, **more: Any) -> Event:
    return event(type="step", step={"digest": digest, "name": name, **more})


def at(second: float) -> str:
    return f"2026-01-01T00:{int(second) // 60:02}:{second % 60:06.3f}Z"


EVENTS = [
    event(type="status", status="building"),
    step("a", "[internal] load build definition", started_at=at(1), completed_at=at(1.5)),
    step("b", "[1/3] FROM busybox"),
    step("b", "[1/3] FROM busybox", started_at=at(2), completed_at=at(2), cached=True),
    step("c", "[2/3] RUN make \x1b[2J", started_at=at(2)),
    event(type="log", step={"digest": "c"}, content="half ", partial=True, timestamp=at(3)),
    event(type="log", step={"digest": "c"}, content="line", timestamp=at(3)),
    event(type="log", content="a line of the agent"),
    event(type="log", step={"digest": "c"}, content="no end", partial=True, timestamp=at(3)),
    step("c", "[2/3] RUN make", started_at=at(2), completed_at=at(65), error="exit code: 2"),
    step("c", "[2/3] RUN make", started_at=at(2), completed_at=at(65), error="exit code: 2"),
    event(type="status", status="failed", content="RUN make failed", error_code="build_failed"),
]


def test_plain_progress_reads_like_buildkits() -> None:
    lines: list[str] = []
    view = PlainView(lines.append, lambda: 0.0)
    for each in EVENTS:
        view.show(each)
    view.close()
    assert lines == [
        "status: building",
        "#1 [internal] load build definition",
        "#1 DONE 0.5s",
        "#2 [1/3] FROM busybox",
        "#2 CACHED",
        "#3 [2/3] RUN make ",
        "#3 1.000 half line",
        "a line of the agent",
        "#3 no end",
        "#3 ERROR: exit code: 2",
        "status: failed",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_progress_ends_with_every_step_and_its_time(monkeypatch: Any) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "20")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    now = 0.0
    view = LiveView(stream, lambda: now)
    for each in EVENTS:
        view.show(each)
        now += 1
    view.note("a note")
    view.close()
    last = stream.getvalue().rpartition("[+] failed")[2]
    assert "(3/3)" in last
    assert " => [internal] load build definition                   0.5s\n" in last
    assert " => CACHED [1/3] FROM busybox                          0.0s\n" in last
    assert " => ERROR [2/3] RUN make                              1m03s\n" in last
    assert "no end" not in last
    assert "a note\n" in stream.getvalue()


def test_a_running_steps_time_counts_from_where_the_daemon_said_it_was() -> None:
    board = Board()
    board.take(step("a", "x", started_at=at(4)), now=100.0)
    assert board.steps["a"].seconds(101.0) == 7.0
    assert board.steps["a"].is_running


def test_lines_of_a_step_that_was_never_announced_are_not_lost() -> None:
    board = Board()
    board.take(event(type="log", step={"digest": "z"}, content="early"), now=0.0)
    assert list(board.steps["z"].tail) == ["early"]


def test_a_line_without_an_end_is_cut_rather_than_kept() -> None:
    board = Board()
    for _ in range(40):
        board.take(event(type="log", step={"digest": "z"}, content="x" * 4096, partial=True), 0.0)
    assert len(board.steps["z"].tail) == 2
