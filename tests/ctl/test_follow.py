"""Following events: exactly once, whatever happens to the connections."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from supervisor.ctl import follow
from supervisor.ctl.client import Client, open_client
from supervisor.ctl.connection import Endpoint
from supervisor.ctl.errors import DaemonUnreachable, NotFound, ProtocolError
from supervisor.ctl.model import LogLine, StatusChange

BUILD = "0" * 24
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def frame(number: int, **event: str) -> bytes:
    return b"id: %d\ndata: %s\n\n" % (number, json.dumps(event).encode())


def log(number: int) -> bytes:
    return frame(number, type="log", content=f"line {number}")


FINAL = frame(100, type="status", status="ready")
HEARTBEAT = b'data: {"type":"heartbeat"}\n\n'

Answer = Callable[[bytes], bytes]
"""From the request's head to everything that is sent before the connection is closed."""


@dataclass
class Server:
    """A daemon that answers each connection as the test has written down, then hangs up."""

    socket: Path
    answers: list[bytes] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    stall: bool = False
    """After the last answer, keep the connection open and silent."""

    async def handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some(4096)
                if not data:
                    return
                head += data
            self.requests.append(head)
            await stream.send_all(self.answers.pop(0))
            if self.stall and not self.answers:
                await trio.sleep_forever()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path / "s")
    async with listening(server):
        yield server


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[None]:
    server.socket.unlink(missing_ok=True)
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.bind(str(server.socket))
    sock.listen()
    listener = trio.SocketListener(sock)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, server.handle, [listener])
        yield
        nursery.cancel_scope.cancel(reason="the test is over")


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with open_client(Endpoint(socket=server.socket)) as client:
        yield client


async def read(client: Client, *, follow: bool = True) -> list[str]:
    """Return what the events say, in order."""
    said = []
    with trio.fail_after(30):
        async with client.open_events(BUILD, follow=follow) as events:
            async for event in events:
                match event.data:
                    case LogLine(content=content):
                        said.append(content)
                    case StatusChange(status=status):
                        said.append(status)
    return said


def lines(*numbers: int) -> list[str]:
    return [f"line {number}" for number in numbers]


async def test_a_dropped_connection_is_resumed_behind_the_last_event(
    server: Server, client: Client
) -> None:
    server.answers = [
        OK + b"\r\n" + log(1) + log(2) + log(3)[:-1],  # the third is cut off
        OK + b"\r\n" + log(3) + HEARTBEAT + log(4),
        OK + b"\r\n",
        OK + b"\r\n" + FINAL,
    ]
    assert await read(client) == [*lines(1, 2, 3, 4), "ready"]
    wanted = [b"", b"2", b"4", b"4"]
    for request, last in zip(server.requests, wanted, strict=True):
        assert (b"last-event-id: " + last in request.lower()) is bool(last)


async def test_events_that_are_sent_again_are_dropped(server: Server, client: Client) -> None:
    server.answers = [
        OK + b"\r\n" + log(1) + log(2),
        OK + b"\r\n" + log(1) + log(2) + log(3) + log(3) + log(2) + FINAL,
    ]
    assert await read(client) == [*lines(1, 2, 3), "ready"]


async def test_a_body_that_breaks_in_a_chunk_is_resumed(server: Server, client: Client) -> None:
    chunked = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    server.answers = [
        chunked + b"%x\r\n" % len(log(1)) + log(1) + b"\r\nffff\r\n" + log(2)[:5],
        chunked + b"%x\r\n" % len(log(2) + FINAL) + log(2) + FINAL + b"\r\n0\r\n\r\n",
    ]
    assert await read(client) == [*lines(1, 2), "ready"]


async def test_nothing_is_read_behind_the_final_status(server: Server, client: Client) -> None:
    server.answers = [OK + b"\r\n" + FINAL + log(101)]
    server.stall = True
    assert await read(client) == ["ready"]


async def test_without_following_the_end_of_the_stream_is_the_end(
    server: Server, client: Client
) -> None:
    server.answers = [OK + b"Connection: close\r\n\r\n" + log(1)]
    assert await read(client, follow=False) == lines(1)


async def test_a_daemon_that_restarts_is_waited_for(tmp_path: Path) -> None:
    server = Server(tmp_path / "s", [OK + b"\r\n" + log(1)])
    told: list[str] = []
    said: list[str] = []
    async with (
        open_client(Endpoint(socket=server.socket)) as client,
        trio.open_nursery() as nursery,
    ):
        gone = trio.Event()

        async def serve() -> None:
            async with listening(server):
                await gone.wait()
            server.socket.unlink()
            server.answers = [
                b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
                OK + b"\r\n" + log(2) + FINAL,
            ]
            await interrupted.wait()
            async with listening(server):
                await trio.sleep_forever()

        interrupted = trio.Event()

        def tell(problem: str) -> None:
            told.append(problem)
            interrupted.set()

        nursery.start_soon(serve)
        while not server.socket.exists():  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)
        with trio.fail_after(30):
            async with client.open_events(BUILD, on_interruption=tell) as events:
                async for event in events:
                    gone.set()
                    if isinstance(event.data, LogLine):
                        said.append(event.data.content)
        nursery.cancel_scope.cancel(reason="the test is over")
    assert said == lines(1, 2)
    assert len(told) == 1


async def test_a_silent_connection_is_made_again(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "SILENCE_SECONDS", 0.05)
    server.answers = [OK + b"\r\n" + log(1)]
    server.stall = True
    told: list[str] = []

    def tell(problem: str) -> None:
        told.append(problem)
        server.answers.append(OK + b"\r\n" + FINAL)

    with trio.fail_after(30):
        async with client.open_events(BUILD, on_interruption=tell) as events:
            assert [event.id async for event in events] == ["1", "100"]
    assert told == [f"{server.socket} fell silent"]


async def test_patience_ends(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 0.0)
    server.answers = [OK + b"\r\n" + log(1), OK + b"\r\n", OK + b"\r\n"]
    with pytest.raises(DaemonUnreachable, match="did not come back within 0 s"):
        await read(client)


async def test_the_first_connection_is_not_tried_twice(tmp_path: Path) -> None:
    async with open_client(Endpoint(socket=tmp_path / "absent")) as client:
        with pytest.raises(DaemonUnreachable, match="there is no daemon"):
            await read(client)


async def test_a_build_that_is_gone_ends_the_following(server: Server, client: Client) -> None:
    body = b'{"code":"not_found","message":"there is no build"}'
    missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    server.answers = [OK + b"\r\n" + log(1), missing]
    with pytest.raises(NotFound, match="there is no build"):
        await read(client)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n",
        OK + b"\r\ndata: no json\n\n",
        OK + b"\r\ndata: [1]\n\n",
        OK + b'\r\ndata: {"type":"status"}\n\n',
    ],
)
async def test_what_is_no_event_stream_is_said_to_be_none(
    server: Server, client: Client, answer: bytes
) -> None:
    server.answers = [answer]
    with pytest.raises(ProtocolError):
        await read(client)
