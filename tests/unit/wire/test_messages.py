"""Messages: whatever one end writes, the other reads."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import wire
from supervisor.config import MAX_CA_BYTES

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)
INTEGER = st.integers(-(2**64), 2**64 - 1)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
SECRET = st.builds(wire.SecretRequest, id=TEXT, env_var=TEXT)
BY_HINT: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: INTEGER,
    float: FLOAT,
    bool: st.booleans(),
    bytes: st.binary(max_size=200),
    float | None: st.none() | FLOAT,
    tuple[str, ...]: st.lists(TEXT, max_size=5).map(tuple),
    tuple[wire.SecretRequest, ...]: st.lists(SECRET, max_size=3).map(tuple),
    typing.get_type_hints(wire.Hello)["timeline"]: st.dictionaries(TEXT, FLOAT, max_size=5),
    typing.get_type_hints(wire.Config)["build_args"]: st.dictionaries(TEXT, TEXT, max_size=5),
    typing.get_type_hints(wire.SecretsResponse)["secrets"]: st.dictionaries(
        TEXT, st.binary(max_size=50), max_size=5
    ),
}
CLASSES: tuple[type[Any], ...] = typing.get_args(wire.Message)


def any_of(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(
        cls, **{field.name: BY_HINT[hints[field.name]] for field in dataclasses.fields(cls)}
    )


messages = st.one_of([any_of(cls) for cls in CLASSES])


@pytest.mark.parametrize("cls", CLASSES)
def test_every_message_survives_the_way(cls: type[Any]) -> None:
    @settings(max_examples=25)
    @given(any_of(cls))
    def round_trip(message: Any) -> None:
        assert list(wire.FrameDecoder().feed(wire.encode(message))) == [message]

    round_trip()


@settings(max_examples=50)
@given(st.lists(messages, max_size=5), st.data())
def test_frames_arrive_in_order_however_the_bytes_are_cut(
    sent: list[Any], data: st.DataObject
) -> None:
    stream = b"".join(map(wire.encode, sent))
    decoder = wire.FrameDecoder()
    received: list[Any] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        received += decoder.feed(stream[:size])
        stream = stream[size:]
    assert received == sent
    assert decoder.is_clean


def test_a_decoder_fed_byte_by_byte_is_clean_only_between_frames() -> None:
    frame = wire.encode(wire.Heartbeat(1.5))
    decoder = wire.FrameDecoder()
    received: list[Any] = []
    for at in range(len(frame)):
        assert decoder.is_clean is (at == 0)
        received += decoder.feed(frame[at : at + 1])
    assert decoder.is_clean
    assert received == [wire.Heartbeat(1.5)]


def test_what_lies_behind_a_frame_can_be_taken_as_it_is() -> None:
    decoder = wire.FrameDecoder()
    raw = b"\xff\xff\xff\xff raw bytes"
    messages = decoder.feed(wire.encode(wire.SourceHeader(1, "ab")) + raw)
    assert next(messages) == wire.SourceHeader(1, "ab")
    assert decoder.take_rest() == raw
    assert decoder.is_clean


def test_fields_that_this_end_does_not_know_are_ignored() -> None:
    body = cbor2.dumps({"type": "heartbeat", "time": 1.0, "new": {"a": [1, None, b"x"]}})
    assert wire.parse(body) == wire.Heartbeat(1.0)


def test_a_type_that_this_end_does_not_know_is_told_and_cut() -> None:
    assert wire.parse(cbor2.dumps({"type": "x" * 500})) == wire.Unknown("x" * 64)


def test_optional_fields_may_be_absent() -> None:
    body = cbor2.dumps({"type": "step", "seq": 1, "digest": "d", "name": "n"})
    assert wire.parse(body) == wire.Step(seq=1, digest="d", name="n")


def test_a_whole_number_is_a_time() -> None:
    (heard,) = wire.FrameDecoder().feed(wire.encode(wire.Heartbeat(5)))
    assert isinstance(heard, wire.Heartbeat)
    assert type(heard.time) is float


def test_a_message_that_is_too_large_is_not_sent() -> None:
    data = bytes(wire.MAX_FRAME_BYTES)
    with pytest.raises(wire.WireError, match="over"):
        wire.encode(wire.Log(seq=1, time=0, step="", stream=1, data=data))


def test_the_largest_configuration_fits_a_frame() -> None:
    wire.encode(
        wire.Config(
            build_id="b",
            registry="r",
            registry_token="t" * 4096,
            repository="builds/b",
            source_sha256="0" * 64,
            source_size=1,
            timeout_seconds=1,
            dockerfile="x" * (1 << 20),
            build_args={f"ARG{n}": "x" * 1000 for n in range(256)},
            ca_certificates="x" * MAX_CA_BYTES,
        )
    )


def test_a_messages_secrets_are_not_in_its_type_error() -> None:
    body = cbor2.dumps({"type": "secrets_response", "secrets": {"npm_token": "hunter2"}})
    with pytest.raises(wire.WireError) as caught:
        wire.parse(body)
    assert "hunter2" not in str(caught.value)
