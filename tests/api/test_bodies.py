"""Bodies: what goes past the parser comes whole, ends where it ends, and hides nothing."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.trio.worker_context import WorkerContext
from trio.testing import lockstep_stream_pair

from supervisor.api import connection, http1
from supervisor.api.connection import Connection, make_config
from supervisor.api.front import ClientGone, Front
from supervisor.registry.http import SEND_FILE
from tests.api.conftest import Api, Server, eventually, serving
from tests.api.rawclient import RawClient


class Echo:
    """Answers with the digest of the body, and remembers how it came."""

    def __init__(self) -> None:
        self.pieces: list[int] = []
        self.cut = 0
        self.served = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = hashlib.sha256()
        self.served += 1
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.cut += 1
                return
            self.pieces.append(len(message["body"]))
            body.update(message["body"])
            if not message["more_body"]:
                break
        text = body.hexdigest().encode()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"%d" % len(text))],
            }
        )
        await send({"type": "http.response.body", "body": text})


def put(body: bytes, *, extra: str = "") -> bytes:
    """Return a whole request."""
    head = f"PUT /v2/x HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def digest(body: bytes) -> bytes:
    """Return what the echo of a body is."""
    return hashlib.sha256(body).hexdigest().encode()


async def answer(client: RawClient) -> bytes:
    """Read one answer; the next one may be read afterwards."""
    client.pretend("GET")
    assert (await client.receive_head()).status_code == 200
    body = await client.receive_body()
    client._http.start_next_cycle()
    return body


@pytest.fixture
def no_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait but a moment for a client to stop sending."""
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.05)


class TestReceiving:
    """Bodies of a length that was announced."""

    async def test_a_large_body_comes_in_large_pieces(self, api: Api) -> None:
        echo, body = Echo(), os.urandom(8 << 20)
        async with (
            serving(api, echo) as server,
            server.raw() as client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(client.stream.send_all, put(body))
            assert await answer(client) == digest(body)
        assert sum(echo.pieces) == len(body)
        assert max(echo.pieces) > http1.RECEIVE_BYTES
        assert max(echo.pieces) <= http1.BODY_RECEIVE_BYTES

    @pytest.mark.parametrize("size", [0, 1, http1.RECEIVE_BYTES, http1.BODY_RECEIVE_BYTES + 1])
    async def test_requests_that_follow_one_another_are_told_apart(
        self, api: Api, size: int
    ) -> None:
        bodies = [os.urandom(size), b"second", os.urandom(size), b""]
        async with (
            serving(api, Echo()) as server,
            server.raw() as client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(client.stream.send_all, b"".join(map(put, bodies)))
            for body in bodies:
                assert await answer(client) == digest(body)

    async def test_a_body_may_come_byte_by_byte(self, api: Api) -> None:
        async with serving(api, Echo()) as server, server.raw() as client:
            for number in range(2):
                for at in range(len(request := put(b"slow %d" % number))):
                    await client.stream.send_all(request[at : at + 1])
                assert await answer(client) == digest(b"slow %d" % number)

    async def test_a_body_that_is_cut_is_no_whole_one(self, api: Api) -> None:
        echo = Echo()
        async with serving(api, echo) as server:
            async with server.raw() as client:
                await client.stream.send_all(put(bytes(1 << 20))[:-1])
                await eventually(lambda: sum(echo.pieces) == (1 << 20) - 1)
            await eventually(lambda: echo.cut)

    async def test_what_is_behind_a_body_is_not_part_of_it(self, api: Api) -> None:
        echo = Echo()
        async with serving(api, echo) as server, server.raw() as client:
            await client.stream.send_all(put(b"body") + b"no request\r\n\r\n")
            assert await answer(client) == digest(b"body")
            client.pretend("GET")
            assert (await client.receive_head()).status_code == 400
        assert echo.served == 1

    @pytest.mark.usefixtures("no_linger")
    async def test_two_ways_of_saying_how_long_a_body_is_are_refused(self, api: Api) -> None:
        echo = Echo()
        hidden = b"0\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
        smuggled = put(hidden, extra="Transfer-Encoding: chunked\r\n")
        async with serving(api, echo) as server, server.raw() as client:
            await client.stream.send_all(smuggled)
            said = b"".join([piece async for piece in client.stream])
        assert said.startswith(b"HTTP/1.1 400 ")
        assert said.count(b"HTTP/1.1") == 1
        assert echo.served == 0

    async def test_a_client_that_waits_to_be_told_to_go_on_is_told(self, api: Api) -> None:
        request = put(b"body", extra="Expect: 100-continue\r\n")
        async with serving(api, Echo()) as server, server.raw() as client:
            await client.stream.send_all(request[:-4])
            assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 100 ")
            await client.stream.send_all(request[-4:])
            assert await answer(client) == digest(b"body")

    @pytest.mark.usefixtures("no_linger")
    async def test_an_answer_that_did_not_wait_for_the_body_arrives(self, api: Api) -> None:
        async def refuse(scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"content-length", b"2")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"no"})

        async with serving(api, refuse) as server, server.raw() as client:
            request = put(bytes(32 << 20))
            await client.stream.send_all(request[: 1 << 20])
            assert await answer(client) == b"no"
            assert await client.stream.receive_some() == b""

    async def test_a_stop_ends_a_body_that_does_not_come(self, api: Api) -> None:
        echo = Echo()
        async with AsyncExitStack() as stack:
            with trio.fail_after(10):
                async with serving(api.with_settings(http_grace=0.05), echo) as server:
                    client = await stack.enter_async_context(server.raw())
                    await client.stream.send_all(put(bytes(100))[:-1])
                    await eventually(lambda: sum(echo.pieces))


class TestSending:
    """What an answer costs."""

    async def test_a_short_answer_is_one_write(self) -> None:
        near, far = lockstep_stream_pair()
        front = Front(api=None, registry=Echo())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Connection(front, make_config(), WorkerContext(None), far).run)
            await near.send_all(put(b"body"))
            said = bytes(await near.receive_some(1 << 16))
            assert said.startswith(b"HTTP/1.1 200 ")
            assert said.endswith(digest(b"body"))
            nursery.cancel_scope.cancel(reason="seen")

    async def test_a_head_of_unknown_length_does_not_wait_for_the_body(self, api: Api) -> None:
        async def silent(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await trio.sleep_forever()

        quick = api.with_settings(http_grace=0.05)
        async with serving(quick, silent) as server, server.raw() as client:
            await client.send_head("GET", "/v2/")
            await client.send_end()
            assert (await client.receive_head()).status_code == 200


class Files:
    """Answers with a part of a file that the server sends by itself."""

    def __init__(self, path: Path, start: int, stop: int) -> None:
        self._path = path
        self._span = start, stop
        self.gone = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start, stop = self._span
        length = b"%d" % (stop - start)
        headers = [(b"content-length", length)]
        fd = os.open(self._path, os.O_RDONLY)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            limiter = trio.CapacityLimiter(1)
            await scope["extensions"][SEND_FILE](fd, start, stop - start, limiter)
            await send({"type": "http.response.body", "body": b""})
        except ClientGone:
            self.gone += 1
            raise
        finally:
            os.close(fd)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """Return what the file holds."""
    content = os.urandom(1 << 20) * 12
    (tmp_path / "file").write_bytes(content)
    return content


Connect = Callable[[Server], Any]


@asynccontextmanager
async def over_unix(server: Server) -> AsyncIterator[RawClient]:
    """Connect to the UNIX socket while the block lasts."""
    async with await trio.open_unix_socket(server.addresses.unix) as stream:
        yield RawClient(stream)


@pytest.mark.parametrize("connect", [Server.raw, over_unix])
class TestFiles:
    """Parts of files, sent by the kernel."""

    async def test_they_arrive_whole_and_the_connection_goes_on(
        self, api: Api, tmp_path: Path, content: bytes, connect: Connect
    ) -> None:
        app = Files(tmp_path / "file", 7, len(content) - 9)
        async with serving(api, app) as server, connect(server) as client:
            for _ in range(2):
                await client.stream.send_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
                assert await answer(client) == content[7:-9]

    async def test_a_client_that_leaves_ends_it(
        self, api: Api, tmp_path: Path, content: bytes, connect: Connect
    ) -> None:
        app = Files(tmp_path / "file", 0, len(content))
        async with serving(api, app) as server:
            async with connect(server) as client:
                await client.stream.send_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
                await client.stream.receive_some(1)
            await eventually(lambda: app.gone)

    async def test_a_client_that_reads_nothing_does_not_hold_up_a_stop(
        self, api: Api, tmp_path: Path, content: bytes, connect: Connect
    ) -> None:
        app = Files(tmp_path / "file", 0, len(content))
        async with AsyncExitStack() as stack:
            with trio.fail_after(10):
                async with serving(api.with_settings(http_grace=0.05), app) as server:
                    client = await stack.enter_async_context(connect(server))
                    await client.stream.send_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
                    await client.stream.receive_some(1)


def test_a_client_that_takes_nothing_does_not_hold_a_thread(tmp_path: Path, content: bytes) -> None:
    sock, client = socket.socketpair()
    with sock, client, (tmp_path / "file").open("rb") as file:
        sock.setblocking(False)
        sent = connection._send_file_sync(sock.fileno(), file.fileno(), 0, len(content), 0)
        assert 0 < sent < len(content)
        taken = b""
        while len(taken) < sent:
            taken += client.recv(1 << 20)
        assert taken == content[:sent]
