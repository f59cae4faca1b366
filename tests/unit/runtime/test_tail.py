from __future__ import annotations

import pytest

from supervisor.runtime.tail import Tail


def test_a_tail_keeps_the_newest_bytes() -> None:
    tail = Tail(5)
    for piece in (b"abc", b"defgh", b"", b"i"):
        tail.add(piece)
    assert tail.text() == "efghi"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"a\tb\r\nc\n", "a\tb\nc\n"),
        (b"\033[2Jgone\a", "\ufffd[2Jgone\ufffd"),
        ("caf\u00e9 \u202e".encode(), "caf\u00e9 \ufffd"),
        (b"cut \xa9", "cut \ufffd"),
    ],
)
def test_the_text_holds_nothing_that_drives_a_terminal(data: bytes, shown: str) -> None:
    tail = Tail(100)
    tail.add(data)
    assert tail.text() == shown
