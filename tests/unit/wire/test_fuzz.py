"""The frame decoder against a corpus of hostile streams, and against what grows from it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import wire
from tests.unit.wire.corpus import Case, cases

CORPUS = cases()
LENGTHS = st.integers(0, 2**32 - 1).map(lambda length: length.to_bytes(4, "big"))
Heard = list[wire.Message | wire.Unknown]


def decode(pieces: list[bytes]) -> tuple[Heard, str, bool]:
    """Return the messages, why the rest was refused, and whether the end is a frame's end."""
    decoder = wire.FrameDecoder()
    heard: Heard = []
    try:
        for piece in pieces:
            heard += decoder.feed(piece)
    except wire.WireError as exc:
        return heard, str(exc), False
    return heard, "", decoder.is_clean


def test_there_is_a_corpus() -> None:
    assert len(CORPUS) >= 25


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_a_stream_of_the_corpus_comes_to_its_end_wherever_it_is_cut(case: Case) -> None:
    cuts = [[case.data], *([case.data[:at], case.data[at:]] for at in range(len(case.data)))]
    for pieces in [*cuts, [bytes([byte]) for byte in case.data]]:
        heard, why, is_clean = decode(pieces)
        if case.why is not None:
            assert case.why in why
        else:
            assert why == ""
            assert is_clean == (case.messages is not None)
            assert case.messages in (None, len(heard))


@st.composite
def grown(draw: st.DrawFn) -> bytes:
    """Return streams of the corpus, one behind the other, with some of their bytes changed."""
    data = bytearray()
    for case in draw(st.lists(st.sampled_from(CORPUS), min_size=1, max_size=3)):
        data += case.data
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["change", "insert", "remove", "length"])):
            case "change":
                data[at] = draw(st.integers(0, 255))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "remove" if len(data) > 1:
                del data[at]
            case "length":
                data[at : at + 4] = draw(LENGTHS)
    return bytes(data)


@given(grown(), st.lists(st.integers(0, 500), max_size=5))
def test_what_grows_from_the_corpus_is_refused_or_messages_wherever_it_is_cut(
    data: bytes, cuts: list[int]
) -> None:
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(ends)]
    assert decode(pieces) == decode([data])
