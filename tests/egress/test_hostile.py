"""Guests that break the protocol, or use it to say two things at once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.egress import kit
from tests.egress.kit import HttpServer, World, get_request, read_all, read_until

PUBLIC = "93.184.216.34"
open_proxy = partial(kit.open_proxy, limits=replace(kit.LIMITS, linger_seconds=0.01))


def world_of(server: HttpServer) -> World:
    return World(names={"example.org": [PUBLIC]}, servers={PUBLIC: server})


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        b"\x05\x01\x00",
        b"\0" * 100,
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET http://example.org/\r\n\r\n",
        b"GET  http://example.org/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://example.org/ HTTP/2.0 x\r\nHost: x\r\n\r\n",
        b"GET http://example.org/a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://ex\xc3\xa4mple.org/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://example.org/\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\nHost: x\r\nA : c\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\n Host: x\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_400_and_reaches_nobody(request_bytes: bytes) -> None:
    world = world_of(HttpServer())
    async with open_proxy(world) as proxy:
        stream = await proxy.tell(request_bytes)
        await stream.send_eof()  # type: ignore[attr-defined]  # a memory stream can
        answer = await read_all(stream)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 "))
        assert (world.lookups, world.connections) == ([], [])


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", b"400"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", b"400"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0", b"400"),
        ("Content-Length: 5\r\nContent-Length: 6", b"400"),
        ("Content-Length: 5, 6", b"400"),
        ("Content-Length: +5", b"400"),
        ("Content-Length: -5", b"400"),
        ("Content-Length: 0x5", b"400"),
        ("Content-Length: 5_0", b"400"),
        ("Content-Length: " + "9" * 21, b"400"),
        ("Content-Length:", b"400"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"501"),
        ("Transfer-Encoding: identity, chunked", b"501"),
        ("Transfer-Encoding: chunked, identity", b"501"),
        ("Transfer-Encoding: xchunked", b"501"),
        ("Transfer-Encoding:\x0bchunked", b"400"),
        ("Transfer-Encoding : chunked", b"400"),
    ],
)
async def test_a_length_that_can_be_read_in_two_ways_is_refused(fields: str, status: bytes) -> None:
    world = world_of(HttpServer())
    async with open_proxy(world) as proxy:
        smuggled = get_request("http://example.org/smuggled")
        head = f"POST http://example.org/ HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n".encode()
        answer = await proxy.ask(head + b"0\r\n\r\n" + smuggled)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert answer.count(b"\r\n\r\n") == 1
        assert world.connections == []


async def test_chunked_in_http_1_0_is_refused() -> None:
    world = world_of(HttpServer())
    async with open_proxy(world) as proxy:
        answer = await proxy.ask(
            b"POST http://example.org/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert world.connections == []


async def test_a_repeated_equal_length_is_sent_once() -> None:
    server = HttpServer()
    async with open_proxy(world_of(server)) as proxy:
        stream = await proxy.tell(
            b"POST http://example.org/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 4\r\n"
            b"Content-Length: 4\r\n\r\nbody"
        )
        await read_until(stream, b"hi")
        assert server.heads[0].count(b"Content-Length") == 1


@pytest.mark.parametrize("options", ["content-length", "Host, transfer-encoding, content-length"])
async def test_a_length_cannot_be_taken_away_by_naming_it_in_connection(options: str) -> None:
    server = HttpServer()
    async with open_proxy(world_of(server)) as proxy:
        smuggled = get_request("http://example.org/smuggled")
        stream = await proxy.tell(
            b"POST http://example.org/ HTTP/1.1\r\nHost: x\r\nConnection: %s\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (options.encode(), len(smuggled), smuggled)
        )
        await read_until(stream, b"hi")
        assert server.bodies == [smuggled]
        assert b"Host: example.org\r\n" in server.heads[0]
        await proxy.wait_decisions(1)
        assert len(server.heads) == 1


async def test_folded_and_bare_line_ends_are_made_plain() -> None:
    server = HttpServer()
    async with open_proxy(world_of(server)) as proxy:
        stream = await proxy.tell(
            b"GET http://example.org/ HTTP/1.1\nHost: x\nA: one\n two\n\tGET / HTTP/1.1\n\n"
        )
        await read_until(stream, b"hi")
        assert server.heads == [
            b"GET / HTTP/1.1\r\nHost: example.org\r\nA: one two GET / HTTP/1.1\r\n"
            b"Connection: close\r\n\r\n"
        ]


@pytest.mark.parametrize(
    "chunks",
    [b"zz\r\n", b"-1\r\n\r\n", b"5\r\nhelloXX", b"1" * 21 + b"\r\n", b"5;" + b"x" * 100_000],
)
async def test_a_broken_chunk_ends_the_request(chunks: bytes) -> None:
    async def swallow(stream: trio.abc.Stream) -> None:
        await read_all(stream)

    world = World(names={"example.org": [PUBLIC]}, servers={PUBLIC: swallow})
    async with open_proxy(world) as proxy:
        answer = await proxy.ask(
            b"POST http://example.org/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunks
        )
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert (await proxy.decision()).reason == "the build broke off"


async def test_a_head_without_end_is_cut_off() -> None:
    async with open_proxy() as proxy:
        fields = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(1000))
        answer = await proxy.ask(b"GET http://example.org/ HTTP/1.1\r\n" + fields)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert proxy.decisions == []


@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
async def test_a_connect_request_with_a_body_is_refused(framing: bytes) -> None:
    world = world_of(HttpServer())
    async with open_proxy(world) as proxy:
        stream = await proxy.tell(
            b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n"
        )
        assert (await read_until(stream, b"\r\n")).startswith(b"HTTP/1.1 403 ")
        assert world.connections == []


async def test_a_target_is_reported_cut_and_without_control_characters() -> None:
    async with open_proxy() as proxy:
        stream = await proxy.tell(get_request("http://" + "a" * 10_000 + "%1b[31m/"))
        await read_until(stream, b"\r\n\r\n")
        assert (await proxy.decision()).host == "http://" + "a" * 93


async def test_a_guest_that_goes_away_in_its_request_leaves_nothing_open() -> None:
    async def swallow(stream: trio.abc.Stream) -> None:
        await read_all(stream)
        gone.set()

    gone = trio.Event()
    world = World(names={"example.org": [PUBLIC]}, servers={PUBLIC: swallow})
    async with open_proxy(world) as proxy:
        stream = await proxy.tell(
            b"POST http://example.org/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"
        )
        await stream.aclose()
        await gone.wait()
        assert (await proxy.decision()).reason == "the build broke off"
        assert world.all_closed


pieces = st.sampled_from(
    [
        b"GET ",
        b"CONNECT ",
        b"POST ",
        b"http://example.org/",
        b"http://127.0.0.1/",
        b"example.org:443",
        b"10.0.0.1:443",
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b"Host: x\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n",
        b"abc",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"\0",
        b"\xff",
    ]
)
noise = st.lists(pieces | st.binary(max_size=20), max_size=20).map(b"".join)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(requests=noise, answer=st.just(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi") | noise)
async def test_no_bytes_of_either_side_break_the_proxy(requests: bytes, answer: bytes) -> None:
    """Only the allowed name is ever connected to, the next request is served, and all is closed."""

    async def blurt(stream: trio.abc.Stream) -> None:
        await stream.send_all(answer)
        await read_all(stream)

    world = World(names={"example.org": [PUBLIC]}, servers={PUBLIC: blurt})
    async with open_proxy(world, allowed=["example.org"]) as proxy:
        stream = await proxy.tell(requests)
        await stream.send_eof()  # type: ignore[attr-defined]  # a memory stream can
        await read_all(stream)
        world.servers[PUBLIC] = HttpServer()
        stream = await proxy.tell(get_request("http://example.org/"))
        await read_until(stream, b"hi")
        assert {address for address, _ in world.connections} == {PUBLIC}
    assert world.all_closed
    assert all(stream.is_closed for stream in proxy.port.accepted)
