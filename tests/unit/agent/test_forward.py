"""The guest's TCP ports lead to the supervisor; no end of one side loses what the other sends."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import trio
import trio.testing

from agent import forward as forward_module
from agent.forward import forward, relay
from agent.vsock import Connect
from tests.kit import cancel_at_every_checkpoint


class NeverHalfClosed(trio.abc.Stream):
    """A vsock stream: it can only be closed whole."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self._inner = inner
        self.is_closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._inner.receive_some(max_bytes))

    async def aclose(self) -> None:
        self.is_closed = True
        await self._inner.aclose()


class Ends:
    """A relay between two pairs of streams: `client` and `server` are its outer ends."""

    def __init__(self) -> None:
        self.client, self.local = trio.testing.memory_stream_pair()
        remote, self.server = trio.testing.memory_stream_pair()
        self.remote = NeverHalfClosed(remote)

    async def run(self) -> None:
        await relay(self.local, self.remote)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = b""
    while chunk := await stream.receive_some():
        data += chunk
    return data


async def test_bytes_pass_both_ways() -> None:
    ends = Ends()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.run)
        await ends.client.send_all(b"question")
        assert await ends.server.receive_some() == b"question"
        await ends.server.send_all(b"answer")
        assert await ends.client.receive_some() == b"answer"
        await ends.client.aclose()
        await ends.server.aclose()
    assert ends.remote.is_closed


async def test_after_the_clients_half_close_the_answer_still_arrives(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ends = Ends()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.run)
        await ends.client.send_all(b"question")
        await ends.client.send_eof()
        assert await ends.server.receive_some() == b"question"
        for _ in range(3):  # longer than the limit in all, but never quiet for so long
            await trio.sleep(forward_module.LINGER_SECONDS * 0.9)
            await ends.server.send_all(b"part")
        await ends.server.aclose()
        assert await read_all(ends.client) == b"partpartpart"


async def test_a_server_that_never_ends_is_left_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ends = Ends()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.run)
        await ends.client.send_eof()
    assert trio.current_time() - start == pytest.approx(forward_module.LINGER_SECONDS)
    assert ends.remote.is_closed


async def test_an_early_answer_is_not_lost_with_the_rest_of_the_question(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ends = Ends()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.run)
        await ends.client.send_all(b"begin")
        await ends.server.receive_some()
        await ends.server.send_all(b"413")
        await ends.server.aclose()
        assert await read_all(ends.client) == b"413"
        await ends.client.send_all(b"rest that nobody reads" * 10_000)
        await ends.client.aclose()
    assert ends.remote.is_closed


async def test_a_client_that_breaks_ends_it_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ends = Ends()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.run)
        await trio.testing.wait_all_tasks_blocked()
        await ends.local.receive_stream.aclose()  # as a reset would
    assert trio.current_time() == start
    assert ends.remote.is_closed


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
        if ends.remote.is_closed:
            with pytest.raises(trio.ClosedResourceError):
                await ends.local.send_all(b"x")

    assert await cancel_at_every_checkpoint(operation, check) > 3


def counting_server(answer: Callable[[int], bytes]) -> tuple[Connect, trio.Event]:
    """Return a supervisor's port that answers each connection with `answer` of its number."""
    numbers = itertools.count()
    connected = trio.Event()

    async def connect(port: int) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        await theirs.send_all(answer(next(numbers)) + b" from %d" % port)
        await theirs.send_eof()
        connected.set()
        return NeverHalfClosed(ours)

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
    async def connect(port: int) -> trio.abc.Stream:
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
    servers: list[trio.abc.Stream] = []
    news = trio.Event()

    async def connect(port: int) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        servers.append(theirs)
        news.set()
        return NeverHalfClosed(ours)

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
    for client in clients:
        await client.aclose()
    nursery.cancel_scope.cancel(reason="enough")
