"""What of a build's output may reach a terminal, and how sizes and times read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.ctl.terminal import clean_line, format_bytes, format_seconds, parse_time


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain\ttext\n", "plain\ttext"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
        ("\x1b[31mred", "\x1b[31mred\x1b[0m"),
        ("\x1b[2J\x1b[1;1Hgone", "gone"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]52;c;Y2xpcA==\x1b\\text", "text"),
        ("\x1bPquery", ""),
        ("\x1bcreset", "reset"),
        ("10%\r50%\r100%", "100%"),
        ("done\r\n", "done"),
        ("bell\x07 csi\x9b2J", "bell\\x07 csi\\x9b2J"),
    ],
)
def test_only_text_and_colours_are_let_through(line: str, shown: str) -> None:
    assert clean_line(line) == shown


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\x1b[];\x07\\m0\r\x9b")))
def test_nothing_else_that_controls_a_terminal_gets_through(line: str) -> None:
    shown = re.sub(r"\x1b\[[0-9;]{0,64}m", "", clean_line(line))
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", shown)
    assert "\x1b" not in clean_line(line, colours=False)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0s"), (59.9, "59.9s"), (65, "1m05s"), (3725, "1h02m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_times_from_elsewhere_may_be_nonsense() -> None:
    assert parse_time("1970-01-01T00:00:01.500Z") == 1.5
    assert parse_time("yesterday") is None
    assert parse_time(None) is None
