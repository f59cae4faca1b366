"""Cancelling the proxy, at whatever moment, leaves no stream open and no request unreported."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import pytest
import trio
import trio.testing

from supervisor.egress.proxy import REPORT_SECONDS
from supervisor.egress.way_out import connect_tcp
from tests.egress.kit import (
    HttpServer,
    Proxy,
    World,
    client_hello,
    connect_request,
    echo,
    get_request,
    open_proxy,
    open_real_proxy,
    open_server,
    read_until,
)
from tests.kit import cancel_at_every_checkpoint
from tests.processes import count_descriptors

PUBLIC = "93.184.216.34"


async def use_tunnel(proxy: Proxy) -> None:
    stream = await proxy.tunnel()
    await stream.send_all(b"ping")
    await read_until(stream, b"ping")


async def use_tls(proxy: Proxy) -> None:
    hello = client_hello("example.org")
    stream = await proxy.tunnel()
    await stream.send_all(hello[:9])
    await stream.send_all(hello[9:])
    await wait_for(stream, hello)


async def upload(proxy: Proxy) -> None:
    stream = await proxy.tell(
        b"POST http://example.org/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
    )
    await stream.send_all(b"body")
    await wait_for(stream, b"hi")
    await stream.send_all(get_request("http://example.org/again"))
    await wait_for(stream, b"hi")


async def be_denied(proxy: Proxy) -> None:
    stream = await proxy.tell(connect_request("10.0.0.1:443"))
    await wait_for(stream, b"NETWORKS.\n")


async def wait_for(stream: trio.abc.ReceiveStream, end: bytes) -> None:
    data = b""
    while not data.endswith(end):
        data += await stream.receive_some(65536)


@pytest.mark.parametrize("use", [use_tunnel, use_tls, upload, be_denied])
async def test_cancelling_at_any_point_closes_every_stream(
    use: Callable[[Proxy], Awaitable[None]],
) -> None:
    server = echo if use in (use_tunnel, use_tls) else HttpServer()
    allowed = ["example.org"] if use is use_tls else None
    runs: list[Proxy] = []

    async def operation() -> None:
        world = World(names={"example.org": [PUBLIC]}, servers={PUBLIC: server})
        async with open_proxy(world, allowed=allowed) as proxy:
            runs.append(proxy)
            await use(proxy)

    async def check(n: int) -> None:
        await trio.lowlevel.checkpoint()
        if not runs:  # cancelled before there was a proxy
            return
        proxy = runs.pop()
        assert proxy.world.all_closed, n
        assert all(stream.is_closed for stream in proxy.port.accepted), n
        reported = [decision.allowed for decision in proxy.decisions].count(True)
        assert reported >= len(proxy.world.connections), n

    assert await cancel_at_every_checkpoint(operation, check) > 20


async def test_cancelling_over_sockets_leaves_no_descriptor() -> None:
    async with open_server(echo) as port:
        before = count_descriptors()

        async def operation() -> None:
            async with open_real_proxy(port) as proxy:
                stream = await proxy.tunnel(f"example.org:{port}")
                await stream.send_all(b"ping")
                await read_until(stream, b"ping")

        async def check(n: int) -> None:
            await trio.testing.wait_all_tasks_blocked(0.01)  # the server closes its side as well
            assert count_descriptors() == before, n

        assert await cancel_at_every_checkpoint(operation, check) > 20


async def test_a_tunnel_that_is_cut_off_reports_its_bytes() -> None:
    world = World(names={"example.org": [PUBLIC]}, servers={PUBLIC: echo})
    async with open_proxy(world) as proxy:
        await use_tunnel(proxy)
        assert proxy.decisions == []
    [decision] = proxy.decisions
    assert (decision.allowed, decision.bytes_sent, decision.bytes_received) == (True, 4, 4)
    assert decision.reason == "cut off when the build ended"


async def test_a_report_that_hangs_does_not_hold_the_end_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def hang(decision: object) -> None:
        await trio.sleep_forever()

    world = World(names={"example.org": [PUBLIC]}, servers={PUBLIC: echo})
    async with open_proxy(world) as proxy:
        proxy.on_decision = hang  # type: ignore[method-assign]  # a log whose disk hangs
        await use_tunnel(proxy)
    assert trio.current_time() == REPORT_SECONDS


async def test_cancelling_a_connection_attempt_closes_its_socket() -> None:
    """To an address that nobody answers at: the attempt would last for minutes."""
    before = count_descriptors()
    listener = trio.socket.socket()
    with listener:
        await listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.listen(0)
        with trio.move_on_after(10):
            held = []
            while True:  # until the backlog is full, and the next attempt waits
                with trio.move_on_after(0.2) as attempt:
                    held.append(await connect_tcp(ip_address("127.0.0.1"), port))
                if attempt.cancelled_caught:
                    break
        assert attempt.cancelled_caught
        for stream in held:
            await stream.aclose()
    assert count_descriptors() == before
