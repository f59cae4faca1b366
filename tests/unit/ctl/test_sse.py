"""Parsing server-sent events, however they are cut into pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.ctl.sse import ServerEvent, SseError, SseParser

STREAM = (
    b": a comment\n\n"
    b"id: 1\ndata: one\n\n"
    b"id:2\r\ndata:two\r\ndata: more\r\n\r\n"
    b"event: x\rretry: 5\rdata: \xc3\xa9\xe2\x80\xa8\r\r"
    b"id: 3\n\n"
    b"data\n\n"
    b"id: 4\ndata: cut off"
)
EVENTS = [
    ServerEvent("1", "one"),
    ServerEvent("2", "two\nmore"),
    ServerEvent("", "é\u2028"),
    ServerEvent("", ""),
]


def parse(pieces: list[bytes]) -> list[ServerEvent]:
    parser = SseParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def test_events_end_with_an_empty_line_and_a_cut_one_is_none() -> None:
    assert parse([STREAM]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_the_pieces_do_not_matter(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(edges)]
    assert parse(pieces) == EVENTS


@given(st.lists(st.text().filter(lambda text: not set(text) & set("\r\n\0"))))
def test_any_text_survives(texts: list[str]) -> None:
    stream = b"".join(b"data: %s\n\n" % text.encode() for text in texts)
    assert [event.data for event in parse([stream])] == texts


@pytest.mark.parametrize("piece", [b"data: x", b"data: x\n", b"id"])
def test_an_event_without_an_end_does_not_fill_the_memory(piece: bytes) -> None:
    parser = SseParser(limit_bytes=1000)

    def feed_for_ever() -> None:
        for _ in range(1000):
            list(parser.feed(piece))

    with pytest.raises(SseError, match="larger than 1000 bytes"):
        feed_for_ever()
