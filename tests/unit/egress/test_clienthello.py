"""The name in a TLS hello, as real clients write it and as hostile ones do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.egress.clienthello import (
    MAX_HELLO_BYTES,
    ClientHello,
    NoHello,
    is_retry_request,
    read_client_hello,
    skip_cipher_changes,
)
from tests.egress.kit import client_hello, tls_records

NAMED = client_hello("packages.example.org")
# Version, random, no session id, one cipher suite, no compression.
START = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"


def message(body: bytes) -> bytes:
    return tls_records(b"\x01" + len(body).to_bytes(3, "big") + body)


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body


def server_name(name: bytes, kind: int = 0) -> bytes:
    entry = bytes([kind]) + len(name).to_bytes(2, "big") + name
    return extension(0, len(entry).to_bytes(2, "big") + entry)


def hello_with(*extensions: bytes) -> bytes:
    body = b"".join(extensions)
    return message(START + len(body).to_bytes(2, "big") + body)


def refused(data: bytes) -> str:
    with pytest.raises(NoHello) as caught:
        read_client_hello(data)
    return str(caught.value)


def named(data: bytes) -> str | None:
    hello = read_client_hello(data)
    assert hello is not None
    assert hello.length == len(data)
    return hello.server_name


def test_the_name_that_a_real_client_writes_is_read() -> None:
    assert named(NAMED) == "packages.example.org"
    assert named(hello_with(server_name(b"a.example"))) == "a.example"


def test_a_hello_without_a_name_has_none() -> None:
    assert named(client_hello(None)) is None
    assert named(hello_with(extension(10, b"x"))) is None
    assert named(message(START)) is None


def test_more_is_waited_for_until_the_hello_is_whole() -> None:
    for end in range(len(NAMED)):
        assert read_client_hello(NAMED[:end]) is None
    assert read_client_hello(NAMED + b"early") == ClientHello("packages.example.org", len(NAMED))


def test_a_hello_in_a_few_records_is_read() -> None:
    whole = NAMED[5:]
    pieces = [whole[at : at + 100] for at in range(0, len(whole), 100)]
    assert 1 < len(pieces) <= 16
    data = b"".join(map(tls_records, pieces))
    assert read_client_hello(data) == ClientHello("packages.example.org", len(data))
    assert "too many pieces" in refused(b"".join(tls_records(bytes([byte])) for byte in whole))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-x\r\n",
        b"\x80\x2e\x01\x03\x01",  # a hello of SSL 2
        b"\x14\x03\x03\x00\x01\x01" + NAMED,  # a change of ciphers before it
        b"\x15\x03\x03\x00\x02\x01\x00" + NAMED,  # an alert before it
        b"\x16\x02\x00\x00\x05",
    ],
)
def test_what_does_not_begin_as_tls_is_refused(data: bytes) -> None:
    assert refused(data) == "it does not begin as TLS"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (tls_records(b"\x02\x00\x00\x01x"), "no client hello"),
        (b"\x16\x03\x01\x00\x00", "no possible length"),
        (b"\x16\x03\x01\xff\xff", "no possible length"),
        (tls_records(b"\x01" + (MAX_HELLO_BYTES).to_bytes(3, "big")), "longer than"),
        (message(START[:20]), "ends inside"),
        (message(START + b"\x00\x09x"), "ends inside"),
        (message(START + b"\x00\x00" + b"x"), "two ways"),
        (hello_with(server_name(b"a.example"), server_name(b"b.example")), "two ways"),
        (hello_with(extension(0, b"\x00\x04\x00\x00\x01ax")), "two ways"),
        (hello_with(extension(0, b"\x00\x08\x00\x00\x01a\x00\x00\x01b")), "two ways"),
        (hello_with(server_name(b"a.example", kind=1)), "something else"),
        (hello_with(server_name(b"a.example"), extension(0xFE0D, b"\x00x")), "hides"),
        (hello_with(extension(0xFE0D, b""), server_name(b"a.example")), "hides"),
        (hello_with(server_name(b"a.example"), extension(0xFFCE, b"x")), "hides"),
        (tls_records(NAMED[5:] + NAMED[5:]), "something else behind it"),
        (hello_with(server_name(b"")), "no name"),
        (hello_with(server_name(b"a\xffb")), "no name"),
        (hello_with(server_name(b"a\nb")), "no name"),
    ],
)
def test_a_hello_that_is_none_is_refused(data: bytes, why: str) -> None:
    assert why in refused(data)


def server_hello(random: bytes) -> bytes:
    body = b"\x03\x03" + random + b"\x00\x13\x01\x00" + b"\x00\x00"
    return tls_records(b"\x02" + len(body).to_bytes(3, "big") + body)


def test_a_server_that_wants_another_hello_is_recognised() -> None:
    # The number of RFC 8446, 4.1.3.
    retry = server_hello(
        bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
    )
    assert is_retry_request(retry) is True
    assert is_retry_request(server_hello(bytes(32))) is False
    assert is_retry_request(b"\x15\x03\x03\x00\x02\x02\x28") is False
    assert [is_retry_request(retry[:end]) for end in range(43)] == [None] * 43


def test_changes_of_ciphers_before_a_second_hello_are_skipped_in_bounds() -> None:
    change = b"\x14\x03\x03\x00\x01\x01"
    assert skip_cipher_changes(NAMED) == 0
    assert skip_cipher_changes(change + NAMED) == len(change)
    assert skip_cipher_changes(change * 99) == 4 * len(change)
    assert skip_cipher_changes(change[:3]) == 0


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_a_hello_or_refused_or_not_enough(data: bytes, is_framed: bool) -> None:
    try:
        hello = read_client_hello(message(data) if is_framed else data)
    except NoHello:
        return
    assert hello is None or hello.server_name is None or hello.server_name.isprintable()


@given(st.data())
def test_a_hello_with_any_byte_changed_names_something_printable(data: st.DataObject) -> None:
    changed = bytearray(NAMED)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        hello = read_client_hello(bytes(changed))
    except NoHello:
        return
    assert hello is None or hello.server_name is None or hello.server_name.isprintable()
