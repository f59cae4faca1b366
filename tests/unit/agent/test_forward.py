"""The guest's TCP ports lead to the supervisor; no end of one side loses what the other sends."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from agent import forward as forward_module
from agent import passage
from agent.forward import forward, relay
from agent.vsock import Connect
from tests.kit import cancel_at_every_checkpoint


def stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    ours, theirs = trio.socket.socketpair()
    return trio.SocketStream(ours), trio.SocketStream(theirs)


def is_closed(stream: trio.SocketStream) -> bool:
    return stream.socket.fileno() == -1


class Ends:
    """A relay between two pairs of sockets: `client` and `server` are its outer ends."""

    def __init__(self) -> None:
        self.client, self.local = stream_pair()
        self.remote, self.server = stream_pair()

    async def run(self) -> None:
        await relay(self.local, self.remote)

    async def close(self) -> None:
        for stream in (self.client, self.local, self.remote, self.server):
            await trio.aclose_forcefully(stream)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made = Ends()
    yield made
    await made.close()


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = b""
    while chunk := await stream.receive_some():
        data += chunk
    return data


async def test_bytes_pass_both_ways(ends: Ends) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.run)
        await ends.client.send_all(b"question")
        assert await ends.server.receive_some() == b"question"
        await ends.server.send_all(b"answer")
        assert await ends.client.receive_some() == b"answer"
        await ends.client.aclose()
        await ends.server.aclose()
    assert is_closed(ends.remote)


async def test_after_the_clients_half_close_the_answer_still_arrives(
    autojump_clock: trio.testing.MockClock, ends: Ends
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.run)
        await ends.client.send_all(b"question")
        await ends.client.send_eof()
        assert await ends.server.receive_some() == b"question"
        with trio.move_on_after(
            forward_module.LINGER_SECONDS * 0.05
        ) as waiting:  # a vsock stream can only be closed whole
            await ends.server.receive_some()
        assert waiting.cancelled_caught
        for _ in range(3):  # longer than the limit in all, but never quiet for so long
            await trio.sleep(forward_module.LINGER_SECONDS * 0.9)
            await ends.server.send_all(b"part")
        await ends.server.aclose()
        assert await read_all(ends.client) == b"partpartpart"


async def test_a_server_that_never_ends_is_left_after_a_while(
    autojump_clock: trio.testing.MockClock, ends: Ends
) -> None:
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.run)
        await ends.client.send_eof()
    assert trio.current_time() - start == pytest.approx(forward_module.LINGER_SECONDS)
    assert is_closed(ends.remote)


async def test_an_early_answer_is_not_lost_with_the_rest_of_the_question(
    autojump_clock: trio.testing.MockClock, ends: Ends
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.run)
        await ends.client.send_all(b"begin")
        await ends.server.receive_some()
        await ends.server.send_all(b"413")
        await ends.server.aclose()
        assert await read_all(ends.client) == b"413"
        await ends.client.send_all(b"rest that nobody reads" * 10_000)
        await ends.client.aclose()
    assert is_closed(ends.remote)


async def test_a_client_that_breaks_ends_it_at_once(
    autojump_clock: trio.testing.MockClock, ends: Ends
) -> None:
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.run)
        await ends.server.send_all(b"what it closes upon, unread, resets the connection")
        await trio.testing.wait_all_tasks_blocked()
        await ends.client.aclose()
    assert trio.current_time() == start
    assert is_closed(ends.remote)


async def test_cancelling_a_relay_closes_both_sides() -> None:
    made: list[Ends] = []

    async def operation() -> None:
        ends = Ends()
        made.append(ends)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.run)
            await ends.client.send_all(b"x")
            await ends.server.receive_some()
            await ends.server.aclose()
            await ends.client.aclose()

    async def check(n: int) -> None:
        ends = made[-1]
        # A relay that was cancelled before it began never had them.
        assert is_closed(ends.local) == is_closed(ends.remote)
        await ends.close()
        assert open_pipes() == pipes

    pipes = open_pipes()
    assert await cancel_at_every_checkpoint(operation, check) > 3


@pytest.mark.parametrize("pipe_bytes", [passage.PIPE_BYTES, 4096])
async def test_large_contents_pass_both_ways_at_once_unchanged(
    monkeypatch: pytest.MonkeyPatch, pipe_bytes: int, ends: Ends
) -> None:
    monkeypatch.setattr(passage, "PIPE_BYTES", pipe_bytes)
    up, down = os.urandom(3 << 20), os.urandom(3 << 20)

    async def send(stream: trio.SocketStream, content: bytes) -> None:
        await stream.send_all(content)
        await stream.send_eof()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.run)
            nursery.start_soon(ends.server.send_all, down)
            nursery.start_soon(send, ends.client, up)
            assert await read_exactly(ends.server, len(up)) == up
            assert await read_exactly(ends.client, len(down)) == down
            await ends.server.aclose()
    assert await read_all(ends.client) == b""


async def test_without_descriptors_for_its_pipes_a_connection_is_closed(
    monkeypatch: pytest.MonkeyPatch, ends: Ends
) -> None:
    def refuse(flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pipe2", refuse)
    await ends.run()
    assert await read_all(ends.client) == b""
    assert is_closed(ends.remote)


async def read_exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive_some(count - len(data))
    return data


def open_pipes() -> int:
    """Return how many ends of pipes this process has open."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one of this listing
            found += str(link.readlink()).startswith("pipe:")
    return found


def counting_server(answer: Callable[[int], bytes]) -> tuple[Connect, trio.Event]:
    """Return a supervisor's port that answers each connection with `answer` of its number."""
    numbers = itertools.count()
    connected = trio.Event()

    async def connect(port: int) -> trio.SocketStream:
        ours, theirs = stream_pair()
        await theirs.send_all(answer(next(numbers)) + b" from %d" % port)
        await theirs.aclose()
        connected.set()
        return ours

    return connect, connected


async def test_each_connection_gets_one_of_its_own(nursery: trio.Nursery) -> None:
    connect, _ = counting_server(lambda n: b"%d" % n)
    listener = await nursery.start(forward, "127.0.0.1", 0, connect, 8083)
    port = listener.socket.getsockname()[1]
    for n in range(3):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert await read_all(stream) == b"%d from 8083" % n
    nursery.cancel_scope.cancel(reason="enough")


async def test_a_supervisor_that_does_not_answer_looks_like_a_server_that_is_down(
    nursery: trio.Nursery,
) -> None:
    async def connect(port: int) -> trio.SocketStream:
        raise ConnectionResetError("nobody listens")

    listener = await nursery.start(forward, "127.0.0.1", 0, connect, 8083)
    for _ in range(2):
        async with await trio.open_tcp_stream(*listener.socket.getsockname()) as stream:
            assert await read_all(stream) == b""
    nursery.cancel_scope.cancel(reason="enough")


async def test_connections_at_once_are_limited(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_module, "MAX_CONNECTIONS", 2)
    servers: list[trio.SocketStream] = []
    news = trio.Event()

    async def connect(port: int) -> trio.SocketStream:
        ours, theirs = stream_pair()
        servers.append(theirs)
        news.set()
        return ours

    listener = await nursery.start(forward, "127.0.0.1", 0, connect, 8083)
    clients = [await trio.open_tcp_stream(*listener.socket.getsockname()) for _ in range(3)]
    while len(servers) < 2:
        await news.wait()
        news = trio.Event()
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert len(servers) == 2
    await servers[0].aclose()  # one ends, and the next has its turn
    await clients[0].aclose()
    while len(servers) < 3:
        await news.wait()
        news = trio.Event()
    for stream in (*clients, *servers):
        await stream.aclose()
    nursery.cancel_scope.cancel(reason="enough")
