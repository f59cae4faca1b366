"""What a hostile peer may send: everything is refused as WireError, and nothing else happens."""

from __future__ import annotations

import dataclasses
import struct
import tracemalloc
import typing
from typing import Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent import wire

HEARTBEAT = cbor2.dumps({"type": "heartbeat", "time": 1.0})


def text(value: str) -> bytes:
    encoded: bytes = cbor2.dumps(value)
    return encoded


def heartbeat_with(extra: bytes) -> bytes:
    """Return a heartbeat whose map has one more field, `x`, of any bytes."""
    return b"\xa3" + HEARTBEAT[1:] + text("x") + extra


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def refused(body: bytes) -> str:
    with pytest.raises(wire.WireError) as caught:
        wire.parse(body)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("tag: date", b"\xc0\x61a"),
        ("tag: bignum", b"\xc2\x49" + b"\xff" * 9),
        ("tag: shared reference", b"\xd8\x1d\x00"),
        ("tag: string reference", b"\xd9\x01\x00\x80"),
        ("tag: of eight bytes", b"\xdb" + b"\xff" * 8 + b"\x00"),
        ("indefinite bytes", b"\x5f\x41a\xff"),
        ("indefinite text", b"\x7f\x61a\xff"),
        ("indefinite array", b"\x9f\x01\xff"),
        ("indefinite map", b"\xbf\x61a\x01\xff"),
        ("a lone break", b"\xff"),
        ("reserved length", b"\x1c"),
        ("undefined", b"\xf7"),
        ("a simple value", b"\xe0"),
        ("a two-byte simple value", b"\xf8\xff"),
        ("a text of no UTF-8", b"\x62\xff\xfe"),
        ("a surrogate as text", b"\x63\xed\xa0\x80"),
        ("a string of 2**63 bytes", b"\x5b" + b"\x7f" + b"\xff" * 7),
        ("an array of 2**64-1 items", b"\x9b" + b"\xff" * 8),
        ("a map of 2**64-1 pairs", b"\xbb" + b"\xff" * 8),
        ("a key that is a number", b"\xa1\x01\x01"),
        ("a key that is a list", b"\xa1\x81\x01\x01"),
        ("a key that is a map", b"\xa1\xa0\x01"),
        ("a key that is bytes", b"\xa1\x41a\x01"),
        ("a key that comes twice", b"\xa2\x61a\x01\x61a\x02"),
        ("a key twice in two spellings", b"\xa2\x61a\x01\x78\x01a\x02"),
    ],
)
def test_what_no_message_needs_is_refused_even_in_a_field_nobody_reads(
    name: str, extra: bytes
) -> None:
    assert wire.parse(HEARTBEAT) == wire.Heartbeat(1.0), name
    refused(heartbeat_with(extra))


def test_a_field_that_comes_twice_is_refused() -> None:
    assert "twice" in refused(b"\xa3" + HEARTBEAT[1:] + text("time") + cbor2.dumps(2.0))


@pytest.mark.parametrize("bytes_behind", [b"\x00", b"\xff", HEARTBEAT])
def test_bytes_behind_the_item_are_refused(bytes_behind: bytes) -> None:
    assert "behind" in refused(HEARTBEAT + bytes_behind)


def test_every_truncation_is_refused() -> None:
    body = cbor2.dumps({"type": "log", "seq": 1, "time": 1.5, "step": "s", "stream": 1,
                        "data": b"x" * 300, "more": {"a": [1, 2, {"b": 2**40}]}})  # fmt: skip
    wire.parse(body)
    for end in range(len(body)):
        refused(body[:end])


@pytest.mark.parametrize("depth", [wire.MAX_DEPTH, 1000, 100_000])
@pytest.mark.parametrize("opening", [b"\x81", b"\xa1\x61a"])
def test_deep_nesting_is_refused(depth: int, opening: bytes) -> None:
    assert "deeper" in refused(heartbeat_with(opening * depth + b"\x00"))


def test_the_deepest_nesting_that_is_allowed_is_taken() -> None:
    inside = b"\x81" * (wire.MAX_DEPTH - 2) + b"\x00"
    assert wire.parse(heartbeat_with(inside)) == wire.Heartbeat(1.0)


def test_too_many_items_are_refused() -> None:
    many = wire.MAX_ITEMS
    assert "items" in refused(heartbeat_with(b"\x99" + struct.pack(">H", many) + b"\x00" * many))


@pytest.mark.parametrize("value", [b"\xf9\x7e\x00", b"\xf9\x7c\x00", b"\xfa\xff\x80\x00\x00"])
def test_times_that_are_no_finite_numbers_are_refused(value: bytes) -> None:
    assert "finite" in refused(b"\xa2" + text("type") + text("heartbeat") + text("time") + value)


@pytest.mark.parametrize(
    "body", [b"", b"\x00", text("heartbeat"), cbor2.dumps([HEARTBEAT]), b"\xa0", b"\xf6"]
)
def test_what_is_no_map_with_a_type_is_refused(body: bytes) -> None:
    refused(body)


@pytest.mark.parametrize("type_", [1, None, b"heartbeat", ["heartbeat"], {"heartbeat": 1}, True])
def test_a_type_that_is_no_text_is_refused(type_: Any) -> None:
    refused(cbor2.dumps({"type": type_, "time": 1.0}))


GOOD: dict[str, dict[str, Any]] = {
    "log": {"seq": 1, "time": 1.0, "step": "s", "stream": 1, "data": b"x"},
    "step": {"seq": 1, "digest": "d", "name": "n", "started_at": None, "cached": True},
    "build_result": {"seq": 1, "ok": True, "lockfile_hashes": {"a": "b"}},
    "hello": {"protocol": 1, "agent": "a", "timeline": {"init": 1.0}},
    "get_secrets": {"ids": ["a"]},
    "secrets_response": {"secrets": {"a": b"x"}},
    "config": {
        "build_id": "b",
        "registry": "r",
        "registry_token": "t",
        "repository": "p",
        "source_sha256": "0",
        "source_size": 1,
        "timeout_seconds": 1.0,
        "secrets": [{"id": "s", "env_var": "E"}],
    },
}
# One value of every kind that CBOR has here; each field takes some of them and no other.
VALUES: list[Any] = [
    None, True, 5, -5, 1.5, "text", b"bytes", [], [1], ["a"], {}, {"a": 1}, {"a": "b"},
    {"a": b"b"}, {"a": 1.5}, [{"id": "s"}], [{"id": 5}], [{}], [None],
]  # fmt: skip
TAKEN: dict[str, list[Any]] = {
    "str": ["text"],
    "int": [5, -5],
    "float": [5, -5, 1.5],
    "bool": [True],
    "bytes": [b"bytes"],
    "float | None": [None, 5, -5, 1.5],
    "tuple[str, ...]": [[], ["a"]],
    "tuple[SecretRequest, ...]": [[], [{"id": "s"}]],
    "Mapping[str, float]": [{}, {"a": 1}, {"a": 1.5}],
    "Mapping[str, str]": [{}, {"a": "b"}],
    "Mapping[str, bytes]": [{}, {"a": b"b"}],
}
FIELDS = [
    pytest.param(cls, field.name, TAKEN[str(field.type)], id=f"{cls.TYPE}-{field.name}")
    for cls in typing.get_args(wire.Message)
    for field in dataclasses.fields(cls)
]


@pytest.mark.parametrize(("cls", "name", "expected"), FIELDS)
def test_a_field_takes_exactly_the_values_of_its_type(
    cls: type[Any], name: str, expected: list[Any]
) -> None:
    needed = {
        field.name: TAKEN[str(field.type)][0]
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    taken = []
    for value in VALUES:
        try:
            message = wire.parse(cbor2.dumps({"type": cls.TYPE, **needed, name: value}))
        except wire.WireError:
            continue
        assert type(message) is cls
        taken.append(value)
    assert [(type(value), value) for value in taken] == [(type(v), v) for v in expected]


@pytest.mark.parametrize("kind", GOOD)
def test_a_message_without_a_field_that_it_needs_is_refused(kind: str) -> None:
    assert "lacks" in refused(cbor2.dumps({"type": kind}))


@given(st.binary(max_size=300))
@example(b"\xa1\x64type\x69heartbeat")
def test_any_bytes_are_refused_or_a_message(body: bytes) -> None:
    try:
        wire.parse(body)
    except wire.WireError:
        return


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_a_message_with_any_bytes_changed_is_refused_or_a_message(
    kind: str, data: st.DataObject
) -> None:
    body = bytearray(cbor2.dumps({"type": kind, **GOOD[kind]}))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        wire.parse(bytes(body))
    except wire.WireError:
        return


# -- frames ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [wire.MAX_FRAME_BYTES + 1, 2**31, 2**32 - 1])
def test_a_frame_over_the_limit_is_refused_by_its_header_alone(length: int) -> None:
    decoder = wire.FrameDecoder()
    with pytest.raises(wire.WireError, match="over the limit"):
        list(decoder.feed(struct.pack(">I", length)))


def test_a_decoder_may_have_a_smaller_limit() -> None:
    message = wire.encode(wire.Error("x" * 100))
    with pytest.raises(wire.WireError, match="over the limit of 64"):
        list(wire.FrameDecoder(64).feed(message))


def test_nothing_is_allocated_for_what_a_header_promises() -> None:
    decoder = wire.FrameDecoder()
    tracemalloc.start()
    try:
        assert list(decoder.feed(struct.pack(">I", wire.MAX_FRAME_BYTES) + b"\x00" * 100)) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 10


def test_a_string_that_promises_much_costs_nothing() -> None:
    body = heartbeat_with(b"\x5a" + struct.pack(">I", 2**31))
    tracemalloc.start()
    try:
        refused(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 10


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(wire.WireError):
        list(wire.FrameDecoder().feed(frame(b"")))


def test_good_frames_before_a_bad_one_are_heard() -> None:
    messages = wire.FrameDecoder().feed(frame(HEARTBEAT) * 2 + frame(b"\xff"))
    assert [next(messages), next(messages)] == [wire.Heartbeat(1.0)] * 2
    with pytest.raises(wire.WireError):
        next(messages)
