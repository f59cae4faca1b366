"""The daemon's log: one line an event, whatever is in its fields."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from supervisor.runtime.logs import log, setup_logging


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Leave the process's logging as it was found."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    log.remove()


def set_up(monkeypatch: pytest.MonkeyPatch, level: str) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    setup_logging(level)
    return stream


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    return set_up(monkeypatch, "info")


def logged(stderr: io.StringIO) -> list[str]:
    return stderr.getvalue().split("\n")[:-1]


def test_facts_follow_the_event(stderr: io.StringIO) -> None:
    log.bind(build_id="b1").info("machine.booted", seconds=1.5)
    (line,) = logged(stderr)
    assert line.endswith("INFO    machine.booted build_id=b1 seconds=1.5")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two words", '"two words"'),
        ("", '""'),
        ("a\nINFO forged", '"a\\nINFO forged"'),
        ("\r\x1b[2J", '"\\r\\x1b[2J"'),
        ("\x85\u2028\u202e", '"\\x85\\u2028\\u202e"'),
        ('x" level="y', '"x\\" level=\\"y"'),
        ("a=b", '"a=b"'),
        ("back\\slash", '"back\\\\slash"'),
        ("{exception} {0} {", '"{exception} {0} {"'),
        ("<red>x</red>", '"<red>x</red>"'),
        ("\\<red>", '"\\\\<red>"'),
        ("\ud800", '"\\ud800"'),
        ("é€🦀", '"é€🦀"'),
        (None, "None"),
        (5, "5"),
        ("sha256:ab/c.d-e_f@1", "sha256:ab/c.d-e_f@1"),
    ],
)
def test_no_value_breaks_out_of_its_field(value: object, shown: str, stderr: io.StringIO) -> None:
    log.info("event", first=value, last="end")
    (line,) = logged(stderr)
    assert line.endswith(f"event first={shown} last=end")


def test_an_exception_is_shown_without_the_values_of_variables(
    stderr: io.StringIO,
) -> None:
    password = "hunter" + "2"
    try:
        raise KeyError(len(password))
    except KeyError as exc:
        log.opt(exception=exc).error("actor.crashed", actor="queue")
    shown = "\n".join(logged(stderr))
    assert "KeyError: 7" in shown
    assert "hunter2" not in shown


def test_what_is_below_the_level_is_not_shown(stderr: io.StringIO) -> None:
    log.debug("detail")
    assert logged(stderr) == []


def test_the_standard_librarys_warnings_are_in_the_same_log(
    stderr: io.StringIO,
) -> None:
    logging.getLogger("hypercorn").warning("too %s", "slow\nforged")
    logging.getLogger("hypercorn").info("not shown")
    logging.getLogger("hypercorn").log(35, "an odd level")
    warning, odd = logged(stderr)
    assert 'library.message logger=hypercorn text="too slow\\nforged"' in warning
    assert "an odd level" in odd
