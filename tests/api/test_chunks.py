"""Bodies in chunks: handed on together, and still what was sent, and nothing behind it."""

from __future__ import annotations

import os

import pytest
import trio

from supervisor.api import connection, http1
from tests.api.conftest import Api, eventually, serving
from tests.api.test_bodies import Echo, answer, digest, put

CHUNK = 32 << 10


def chunked(body: bytes, size: int = CHUNK, *, trailer: str = "") -> bytes:
    """Return a whole request with the body in chunks of one size."""
    head = b"PUT /v2/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head + chunks + f"0\r\n{trailer}\r\n".encode()


async def test_many_chunks_come_as_one_piece(api: Api) -> None:
    echo, body = Echo(), os.urandom(8 << 20)
    async with (
        serving(api, echo) as server,
        server.raw() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.stream.send_all, chunked(body))
        assert await answer(client) == digest(body)
    assert sum(echo.pieces) == len(body)
    assert max(echo.pieces) > CHUNK
    assert max(echo.pieces) <= http1.BODY_RECEIVE_BYTES


async def test_crumbs_are_handed_on_before_they_are_many(api: Api) -> None:
    echo, body = Echo(), os.urandom(5000)
    async with serving(api, echo) as server, server.raw() as client:
        head, end, chunks = chunked(body, 1).partition(b"\r\n\r\n")
        await client.stream.send_all(head + end)
        await eventually(lambda: echo.served)
        await client.stream.send_all(chunks)
        assert await answer(client) == digest(body)
    assert 1 < max(echo.pieces) <= http1._JOINED_CHUNKS


@pytest.mark.parametrize("size", [0, 1, CHUNK, http1.BODY_RECEIVE_BYTES + 1])
async def test_requests_that_follow_one_another_are_told_apart(api: Api, size: int) -> None:
    bodies = [os.urandom(size), b"second", os.urandom(size), b"", os.urandom(size)]
    whole = b"".join(
        chunked(body, trailer="X-Y: z\r\n") if number % 2 else chunked(body) + put(body)
        for number, body in enumerate(bodies)
    )
    async with (
        serving(api, Echo()) as server,
        server.raw() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.stream.send_all, whole)
        for number, body in enumerate(bodies):
            for _ in range(1 + (number + 1) % 2):
                assert await answer(client) == digest(body)


async def test_they_may_come_byte_by_byte(api: Api) -> None:
    async with serving(api, Echo()) as server, server.raw() as client:
        for number in range(2):
            request = chunked(b"slow %d" % number, 3, trailer="X-Y: z\r\n")
            for at in range(len(request)):
                await client.stream.send_all(request[at : at + 1])
            assert await answer(client) == digest(b"slow %d" % number)


async def test_a_body_that_is_cut_is_no_whole_one(api: Api) -> None:
    echo = Echo()
    async with serving(api, echo) as server:
        async with server.raw() as client:
            await client.stream.send_all(chunked(bytes(1 << 20)).removesuffix(b"0\r\n\r\n"))
            await eventually(lambda: sum(echo.pieces) == 1 << 20)
        await eventually(lambda: echo.cut)


@pytest.mark.parametrize("wrong", [b"zz\r\nab\r\n", b"-1\r\nab\r\n", b"2\r\nabc\r\n", b"\r\n"])
async def test_what_is_no_chunk_ends_the_request(
    api: Api, monkeypatch: pytest.MonkeyPatch, wrong: bytes
) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.05)
    echo = Echo()
    async with serving(api, echo) as server, server.raw() as client:
        await client.stream.send_all(chunked(b"x" * 10, 5).removesuffix(b"0\r\n\r\n"))
        await client.stream.send_all(wrong + put(b"hidden"))
        said = b"".join([piece async for piece in client.stream])
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1") == 1
    assert (echo.served, echo.cut) == (1, 1)


async def test_a_client_that_waits_to_be_told_to_go_on_is_told(api: Api) -> None:
    head, end, chunks = chunked(b"body").partition(b"\r\n\r\n")
    async with serving(api, Echo()) as server, server.raw() as client:
        await client.stream.send_all(head + b"\r\nExpect: 100-continue" + end)
        assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await client.stream.send_all(chunks)
        assert await answer(client) == digest(b"body")
