"""Lines out of chunks: the same ones however the output is cut, and never more than is bounded."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.guest.lines import MAX_LINE_BYTES, MAX_OPEN_LINES, Line, LineAssembler

# Few bytes at the edges that matter: line ends, a UTF-8 character of each length, broken ones.
TOKENS = st.sampled_from(
    [b"a", b"\n", b"\r", b"\r\n", "é".encode(), "€".encode(), "🦀".encode(), b"\xff", b"\xc3"]
)
BULK = st.sampled_from([b"x" * (MAX_LINE_BYTES - 1), "€".encode() * 30_000, b"y" * 200_000])


def said(chunks: Iterable[bytes]) -> list[Line]:
    """Return everything that comes of chunks of one stream, of one moment."""
    lines = LineAssembler()
    heard = [line for chunk in chunks for line in lines.feed("s", 1, 0.0, chunk)]
    return heard + list(lines.finish_all(0.0))


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]


def lengths(lines: list[Line]) -> list[int]:
    return [len(line.content) for line in lines]


@given(st.lists(TOKENS, max_size=40).map(b"".join), st.lists(st.integers(0, 5), max_size=40))
def test_any_cutting_of_the_output_gives_the_same_lines(data: bytes, sizes: list[int]) -> None:
    assert said(cut(data, sizes)) == said([data])


@settings(max_examples=30)
@given(
    st.lists(TOKENS | BULK, max_size=8).map(b"".join),
    st.lists(st.integers(0, 100_000), max_size=8),
)
def test_any_cutting_of_long_lines_gives_the_same_pieces(data: bytes, sizes: list[int]) -> None:
    assert said(cut(data, sizes)) == said([data])


@settings(max_examples=50)
@given(st.lists(TOKENS | BULK, max_size=8).map(b"".join))
def test_the_pieces_are_the_output(data: bytes) -> None:
    lines = said([data])
    text = "".join(line.content + ("" if line.is_partial else "\n") for line in lines)
    expected = data.decode("utf-8", "replace").replace("\r\n", "\n")
    if not data.endswith(b"\n") and data:
        expected += "\n"
    if b"\xff" not in data and b"\xc3" not in data.replace("é".encode(), b""):
        assert text == expected
    assert all(len(line.content.encode()) <= 3 * MAX_LINE_BYTES for line in lines)
    assert all("\n" not in line.content for line in lines)


def test_a_line_at_the_limit_is_whole_and_one_byte_more_is_two_pieces() -> None:
    assert lengths(said([b"x" * MAX_LINE_BYTES + b"\n"])) == [MAX_LINE_BYTES]
    assert lengths(said([b"x" * (MAX_LINE_BYTES + 1) + b"\n"])) == [MAX_LINE_BYTES, 1]


def test_pieces_are_marked_and_the_last_is_not() -> None:
    lines = said([b"x" * (2 * MAX_LINE_BYTES + 5) + b"\nnext\n"])
    assert [line.is_partial for line in lines] == [True, True, False, False]


@pytest.mark.parametrize("character", ["é", "€", "🦀"])
def test_a_piece_never_ends_inside_a_character(character: str) -> None:
    for shift in range(5):
        line = "x" * shift + character * MAX_LINE_BYTES
        pieces = said([line.encode() + b"\n"])
        assert "".join(piece.content for piece in pieces) == line


def test_streams_and_steps_do_not_mix() -> None:
    lines = LineAssembler()
    heard: list[Line] = []
    for step, stream, data in (("a", 1, b"1"), ("b", 1, b"2"), ("a", 2, b"3"), ("a", 1, b"4\n")):
        heard += lines.feed(step, stream, 0.0, data)
    assert heard == [Line("a", 1, 0.0, "14", is_partial=False)]
    assert [line.content for line in lines.finish("a", 9.0)] == ["3"]
    assert [line.content for line in lines.finish_all(9.0)] == ["2"]
    assert list(lines.finish_all(9.0)) == []


def test_a_line_has_the_time_of_the_chunk_that_ended_it() -> None:
    lines = LineAssembler()
    assert list(lines.feed("", 1, 1.0, b"be")) == []
    assert [line.time for line in lines.feed("", 1, 2.0, b"gun\nnext\n")] == [2.0, 2.0]


def test_what_is_remembered_is_bounded_whatever_is_sent() -> None:
    lines = LineAssembler()
    chunk = b"z" * MAX_LINE_BYTES
    heard = [
        line for stream in range(MAX_OPEN_LINES + 50) for line in lines.feed("", stream, 0.0, chunk)
    ]
    assert [line.is_partial for line in heard] == [True] * 50
    assert len(list(lines.finish_all(0.0))) == MAX_OPEN_LINES


def test_a_stream_over_the_bound_still_ends_its_line() -> None:
    lines = LineAssembler()
    for stream in range(MAX_OPEN_LINES):
        list(lines.feed("", stream, 0.0, b"z"))
    heard = [*lines.feed("late", 1, 0.0, b"be"), *lines.feed("late", 1, 0.0, b"gun\n")]
    assert [(line.content, line.is_partial) for line in heard] == [("be", True), ("gun", False)]
