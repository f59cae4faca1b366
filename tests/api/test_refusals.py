"""Who may not send a body is told so before it is sent; what is asked for comes whole."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from supervisor.tokens import Permission
from tests.api.conftest import SOURCE, Api, Server, bearer, serving

BODY = (
    b'--b\r\nContent-Disposition: form-data; name="source"; filename="s"\r\n\r\n'
    + SOURCE
    + b"\r\n--b--\r\n"
)


def head(path: str, headers: dict[str, str], length: int) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: api",
        "Content-Type: multipart/form-data; boundary=b",
        f"Content-Length: {length}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def read_until(stream: trio.abc.ReceiveStream, end: bytes) -> bytes:
    received = b""
    while end not in received:
        data = await stream.receive_some()
        assert data, received
        received += data
    return received


NOT_ALLOWED = {
    "no token": ("/builds", {}, b"401"),
    "bad token": ("/builds", {"Authorization": "Bearer x"}, b"401"),
    "not this permission": ("/builds", bearer("acme", Permission.BUILD_READ), b"403"),
    "no such route": ("/nothing", bearer(), b"404"),
    "a bad key": ("/builds", {**bearer(), "Idempotency-Key": "a b"}, b"400"),
    "too long": ("/builds", bearer(), b"413"),
}


@pytest.mark.parametrize("expect", [{}, {"Expect": "100-continue"}], ids=["plain", "expect"])
@pytest.mark.parametrize(("path", "headers", "status"), NOT_ALLOWED.values(), ids=NOT_ALLOWED)
async def test_what_is_refused_is_refused_before_its_body_is_sent(
    server: Server, path: str, headers: dict[str, str], status: bytes, expect: dict[str, str]
) -> None:
    async with await server.connect() as stream:
        await stream.send_all(head(path, {**headers, **expect}, 100 << 30))
        answer = await read_until(stream, b"}")
    assert answer.startswith(b"HTTP/1.1 " + status), answer


async def test_a_full_queue_refuses_before_the_body_is_sent(api: Api, server: Server) -> None:
    api.fake.room = 0
    async with await server.connect() as stream:
        await stream.send_all(head("/builds", {**bearer(), "Expect": "100-continue"}, len(BODY)))
        assert (await read_until(stream, b"}")).startswith(b"HTTP/1.1 429")


async def test_a_client_that_waits_for_leave_gets_it_and_its_body_is_taken(server: Server) -> None:
    async with await server.connect() as stream:
        for _ in range(2):  # and the connection goes on
            await stream.send_all(
                head("/builds", {**bearer(), "Expect": "100-continue"}, len(BODY))
            )
            assert await read_until(stream, b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
            await stream.send_all(BODY)
            assert (await read_until(stream, b"}}")).startswith(b"HTTP/1.1 202")


async def test_a_client_that_does_not_wait_for_leave_is_served_all_the_same(
    server: Server,
) -> None:
    async with await server.connect() as stream:
        await stream.send_all(
            head("/builds", {**bearer(), "Expect": "100-continue"}, len(BODY)) + BODY
        )
        assert b"HTTP/1.1 202" in await read_until(stream, b"}}")


async def test_the_registry_too_asks_for_a_body_only_when_it_wants_it(api: Api) -> None:
    async def registry(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/v2/take":
            while (await receive())["more_body"]:
                pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"}"})

    async with serving(api, registry) as server:
        for path, first in (("/v2/take", b"HTTP/1.1 100"), ("/v2/refuse", b"HTTP/1.1 200")):
            async with await server.connect() as stream:
                await stream.send_all(head(path, {"Expect": "100-continue"}, 3))
                assert (await read_until(stream, b"\r\n\r\n")).startswith(first)


async def test_a_client_that_goes_away_while_it_waits_leaves_nothing(
    server: Server,
) -> None:
    """The fixture looks for uploads that were left."""
    async with await server.connect() as stream:
        await stream.send_all(head("/builds", {**bearer(), "Expect": "100-continue"}, len(BODY)))
        await read_until(stream, b"\r\n\r\n")
