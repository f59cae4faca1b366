"""Byte ranges, against what RFC 9110 says of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.registry.ranges import (
    Span,
    Unsatisfiable,
    parse_byte_range,
    parse_chunk_range,
)

SIZES = st.integers(0, 1000)


@given(st.integers(0, 2000), st.integers(0, 2000), SIZES)
def test_a_range_is_what_slicing_gives(first: int, last: int, size: int) -> None:
    content = bytes(size)
    expected = content[first : last + 1]
    if not expected:
        with pytest.raises(Unsatisfiable):
            parse_byte_range(f"bytes={first}-{last}", size)
        return
    span = parse_byte_range(f"bytes={first}-{last}", size)
    assert span is not None
    assert content[span.start : span.stop] == expected
    assert span.length == len(expected)


@given(st.integers(1, 2000), st.integers(1, 1000))
def test_a_suffix_is_the_end(length: int, size: int) -> None:
    span = parse_byte_range(f"bytes=-{length}", size)
    assert span == Span(max(0, size - length), size)


@given(st.text())
def test_any_text_is_a_range_or_unsatisfiable_or_none(text: str) -> None:
    for prefix in ("", "bytes="):
        try:
            span = parse_byte_range(prefix + text, 100)
        except Unsatisfiable:
            continue
        assert span is None or 0 <= span.start < span.stop <= 100


@pytest.mark.parametrize("text", ["bytes=-", "bytes=1-2,3-4", "items=0-1", "bytes 0-1", "bytes=٣-"])
def test_what_is_not_one_byte_range_asks_for_everything(text: str) -> None:
    assert parse_byte_range(text, 100) is None


def test_a_chunk_has_both_ends() -> None:
    assert parse_chunk_range("0-0") == Span(0, 1)
    assert parse_chunk_range("10-19") == Span(10, 20)
    for text in ("", "-", "1-", "-1", "2-1", "0-1/5", "bytes 0-1", "a-b", "0-" + "9" * 30, "٣-٤"):
        assert parse_chunk_range(text) is None
