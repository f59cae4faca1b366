"""Secrets never leave, however a stream is cut into chunks."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from agent.redact import MASK, Redaction

# Few letters, so that values overlap, repeat and begin inside each other.
letters = st.binary(max_size=40).map(lambda data: bytes(b"abc\n "[byte % 5] for byte in data))
secrets = st.lists(letters.filter(bool), max_size=4)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]


@given(values=secrets, data=letters, sizes=st.lists(st.integers(0, 9), max_size=20))
@example(values=[b"ab", b"abc"], data=b"abab", sizes=[1, 1, 1])
@example(values=[b"aab", b"abb"], data=b"aaabb", sizes=[2])
@example(values=[b"abca"], data=b"abcabca", sizes=[4])
def test_every_way_of_cutting_a_stream_shows_the_same(
    values: list[bytes], data: bytes, sizes: list[int]
) -> None:
    redaction = Redaction(values)
    stream = redaction.stream()
    shown = b"".join([*map(stream.feed, cut(data, sizes)), stream.flush()])
    assert shown == redaction.bytes(data)


@given(values=secrets, data=letters, sizes=st.lists(st.integers(0, 9), max_size=20))
def test_no_value_is_ever_shown(values: list[bytes], data: bytes, sizes: list[int]) -> None:
    stream = Redaction(values).stream()
    shown = b"".join([*map(stream.feed, cut(data, sizes)), stream.flush()])
    for part in shown.split(MASK):
        assert not any(value.strip() and value.strip() in part for value in values)


@given(values=secrets, data=letters)
def test_less_than_the_longest_value_is_held_back(values: list[bytes], data: bytes) -> None:
    redaction = Redaction(values)
    stream = redaction.stream()
    stream.feed(data)
    longest = max((len(needle) for needle in redaction.needles), default=1)
    assert len(stream._held) < longest


def test_a_stream_without_secrets_is_passed_on_at_once() -> None:
    stream = Redaction().stream()
    assert stream.feed(b"anything") == b"anything"
    assert stream.flush() == b""


def test_a_value_is_found_without_the_newline_that_its_file_ends_with() -> None:
    assert Redaction([b"s3cret\n"]).bytes(b"token=s3cret;") == b"token=***;"


def test_the_longer_of_two_values_at_one_place_is_masked() -> None:
    assert Redaction([b"pass", b"password"]).bytes(b"my password") == b"my ***"


def test_the_lines_of_a_longer_value_are_masked_one_by_one() -> None:
    key = b"-----BEGIN KEY-----\nMIIEvQIBADAN\n-----END KEY-----\n"
    shown = Redaction([key]).bytes(b"read MIIEvQIBADAN from the file")
    assert shown == b"read *** from the file"


def test_short_lines_of_a_longer_value_are_left_alone() -> None:
    shown = Redaction([b'{\n"password": "correct horse"\n}']).bytes(b"{ }")
    assert shown == b"{ }"


def test_an_empty_value_masks_nothing() -> None:
    assert Redaction([b"", b" \n"]).bytes(b"a b\n") == b"a b\n"


def test_text_that_is_not_utf_8_survives() -> None:
    assert Redaction([b"x"]).text("a\udcffxb") == "a\udcff***b"
