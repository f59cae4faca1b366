"""What one machine may use up: connections, bytes, requests, and time."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
import trio
import trio.testing

from supervisor.egress.policy import Decision
from supervisor.egress.proxy import WAITING_CONNECTIONS
from supervisor.egress.relay import GUEST_BROKE_OFF, USED_UP
from tests.egress.kit import (
    LIMITS,
    HttpServer,
    Server,
    World,
    body,
    connect_request,
    echo,
    get_request,
    open_proxy,
    read_all,
    read_until,
)

PUBLIC = "93.184.216.34"


def world_of(server: Server, *, lockstep: bool = False) -> World:
    """Lockstep: a sender waits until its bytes are read, as with a full buffer."""
    make_pair = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
    return World(
        names={"example.org": [PUBLIC], "silent.example": ["8.8.8.8"]},
        servers={PUBLIC: server, "8.8.8.8": silent},
        make_pair=make_pair,
    )


async def silent(stream: trio.abc.Stream) -> None:
    """Read nothing and write nothing."""
    await trio.sleep_forever()


async def flood(stream: trio.abc.Stream) -> None:
    """Write without end."""
    while True:
        await stream.send_all(bytes(1000))


# -- bytes -------------------------------------------------------------------------------------


async def test_a_tunnel_is_cut_at_the_byte_limit_and_nothing_beyond_is_passed_on() -> None:
    limits = replace(LIMITS, max_bytes=10_000)
    async with open_proxy(world_of(flood, lockstep=True), limits=limits) as proxy:
        received = await read_all(await proxy.tunnel())
        assert len(received) <= 10_000
        decision = await proxy.decision()
        assert decision.allowed
        assert decision.reason == USED_UP
        assert len(received) <= decision.bytes_received <= 11_000


async def test_the_byte_limit_holds_for_all_connections_together_and_both_directions() -> None:
    limits = replace(LIMITS, max_bytes=10_000)
    async with open_proxy(world_of(echo), limits=limits) as proxy:
        first = await proxy.tunnel()
        second = await proxy.tunnel()
        for stream in (first, second):
            await stream.send_all(bytes(2000))
            for _ in range(2000):
                await read_until(stream, b"\0")
        await first.send_all(bytes(2001))  # and its echo is one byte too many
        await read_all(first)
        await second.send_all(b"x")
        assert await read_all(second) == b""
        await trio.testing.wait_all_tasks_blocked()
        assert [decision.reason for decision in proxy.decisions] == [USED_UP, USED_UP]
        stream = await proxy.tell(get_request("http://example.org/"))
        answer = await read_until(stream, b"bytes.\n")
        assert answer.startswith(b"HTTP/1.1 403 example.org:80 is denied: the build has used")
        assert proxy.decisions[-1] == Decision(False, "example.org", 80, USED_UP)


async def test_a_download_over_the_byte_limit_does_not_look_whole() -> None:
    async def send(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n")
        await flood(stream)

    limits = replace(LIMITS, max_bytes=10_000)
    async with open_proxy(world_of(send, lockstep=True), limits=limits) as proxy:
        answer = await proxy.ask(get_request("http://example.org/"))
        assert 5_000 < len(body(answer)) < 10_000
        assert (await proxy.decision()).reason == USED_UP


async def test_an_upload_over_the_byte_limit_is_cut() -> None:
    async def swallow(stream: trio.abc.Stream) -> None:
        await read_all(stream)

    limits = replace(LIMITS, max_bytes=10_000)
    async with open_proxy(world_of(swallow), limits=limits) as proxy:
        stream = await proxy.tell(
            b"POST http://example.org/ HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n"
            + bytes(20_000)
        )
        assert (await read_until(stream, b"\r\n")).startswith(b"HTTP/1.1 403 ")
        decision = await proxy.decision()
        assert (decision.allowed, decision.reason) == (True, USED_UP)
        assert decision.bytes_sent <= 10_000


# -- connections and requests ------------------------------------------------------------------


async def test_connections_over_the_limit_wait_and_are_served_when_one_ends() -> None:
    limits = replace(LIMITS, max_connections=2)
    async with open_proxy(world_of(echo), limits=limits) as proxy:
        first, _second = await proxy.tunnel(), await proxy.tunnel()
        third = await proxy.tell(connect_request("example.org:443"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(proxy.world.connections) == 2
        await first.aclose()
        await read_until(third, b"\r\n\r\n")
        assert len(proxy.world.connections) == 3


async def test_connections_beyond_the_waiting_room_are_closed() -> None:
    limits = replace(LIMITS, max_connections=1)
    async with open_proxy(world_of(echo), limits=limits) as proxy:
        await proxy.tunnel()
        waiting = [proxy.connect() for _ in range(WAITING_CONNECTIONS)]
        await trio.testing.wait_all_tasks_blocked()
        assert await read_all(proxy.connect()) == b""
        assert [stream.is_closed for stream in proxy.port.accepted].count(True) == 1
        await waiting[0].aclose()


async def test_a_host_out_of_descriptors_goes_on_when_it_has_some_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_proxy(world_of(echo)) as proxy:
        accept = proxy.port.accept
        failures = [OSError(errno.EMFILE, "Too many open files")] * 3

        async def fail_first() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            if failures:
                raise failures.pop()
            return await accept()

        proxy.port.accept = fail_first  # type: ignore[method-assign]  # a host that is full
        await proxy.tunnel()  # the first one, which the accept under way takes
        await proxy.tunnel()
        assert failures == []


async def test_requests_over_the_limit_are_denied_and_the_first_of_them_reported() -> None:
    limits = replace(LIMITS, max_requests=3)
    async with open_proxy(world_of(echo), limits=limits) as proxy:
        for _ in range(6):
            stream = await proxy.tell(connect_request("10.0.0.1:443"))
            last = await read_until(stream, b"\r\n")
        assert b"403" in last
        assert b"all of its requests" in last
        assert len(proxy.decisions) == 4
        assert not proxy.decisions[-1].allowed
        assert proxy.decisions[-1].reason == "the build has made all of its requests"


async def test_a_machine_looks_up_a_few_names_at_once_only() -> None:
    async def hang(name: str) -> list[object]:
        world.lookups.append(name)
        return await trio.sleep_forever()

    world = world_of(echo)
    world.resolve = hang  # type: ignore[method-assign, assignment]  # a resolver that never answers
    async with open_proxy(world) as proxy:
        for number in range(20):
            await proxy.tell(connect_request(f"slow{number}.example:443"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(world.lookups) == 4


# -- time --------------------------------------------------------------------------------------


async def test_a_guest_that_says_nothing_is_let_go(autojump_clock: trio.testing.MockClock) -> None:
    async with open_proxy() as proxy:
        assert await read_all(proxy.connect()) == b""
        assert trio.current_time() >= LIMITS.idle_seconds
        assert proxy.decisions == []


async def test_a_head_that_drips_in_does_not_hold_its_slot(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_proxy() as proxy, trio.open_nursery() as nursery:
        stream = proxy.connect()

        async def drip() -> None:
            for byte in get_request("http://example.org/" + "a" * 1000):
                await trio.sleep(1)
                await stream.send_all(bytes([byte]))

        async def expect_end() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await drip()
            nursery.cancel_scope.cancel(reason="done")

        nursery.start_soon(expect_end)
    assert trio.current_time() <= LIMITS.idle_seconds + LIMITS.linger_seconds + 2


async def test_an_idle_tunnel_ends_and_says_so(autojump_clock: trio.testing.MockClock) -> None:
    async with open_proxy(world_of(echo)) as proxy:
        stream = await proxy.tunnel()
        await trio.sleep(LIMITS.idle_seconds - 1)
        await stream.send_all(b"x")
        await read_until(stream, b"x")
        await trio.sleep(LIMITS.idle_seconds - 1)
        assert proxy.decisions == []
        assert await read_all(stream) == b""
        assert (await proxy.decision()).reason == "idle for 60 s"
        assert proxy.world.all_closed


async def test_a_server_that_never_reads_ends_a_tunnel(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_proxy(world_of(silent, lockstep=True)) as proxy:
        stream = await proxy.tunnel()
        await stream.send_all(bytes(100_000))
        assert await read_all(stream) == b""
        assert (await proxy.decision()).reason == "idle for 60 s"


async def test_a_guest_that_never_reads_ends_a_tunnel(
    autojump_clock: trio.testing.MockClock,
) -> None:
    make_pair = trio.testing.lockstep_stream_pair
    async with open_proxy(world_of(flood, lockstep=True), make_pair=make_pair) as proxy:
        await proxy.tunnel()
        [decision] = await proxy.wait_decisions(1)
        assert decision.reason == "idle for 60 s"
        assert proxy.world.all_closed


async def test_a_guest_that_never_reads_its_answer_is_let_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    make_pair = trio.testing.lockstep_stream_pair
    async with open_proxy(world_of(echo), make_pair=make_pair) as proxy:
        await proxy.tell(connect_request("example.org:443"))
        await proxy.tell(connect_request("10.0.0.1:443"))
        assert {(d.host, d.reason) for d in await proxy.wait_decisions(2)} == {
            ("example.org", "it did not begin within 60 s"),
            ("10.0.0.1", "it is a private address"),
        }
        for stream in proxy.port.accepted:
            await stream.closed.wait()


async def test_a_server_that_never_answers_is_a_504(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_proxy(world_of(silent)) as proxy:
        stream = await proxy.tell(get_request("http://example.org/"))
        assert await read_until(stream, b"\r\n") == b"HTTP/1.1 504 idle for 60 s\r\n"
        decision = await proxy.decision()
        assert (decision.allowed, decision.reason) == (True, "idle for 60 s")


async def test_a_server_that_stops_in_a_response_ends_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def stall(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await trio.sleep_forever()

    async with open_proxy(world_of(stall)) as proxy:
        assert body(await proxy.ask(get_request("http://example.org/"))) == b"half"
        assert (await proxy.decision()).reason == "idle for 60 s"


async def test_a_guest_that_stops_in_a_body_ends_its_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_proxy(world_of(silent)) as proxy:
        stream = await proxy.tell(
            b"POST http://example.org/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf"
        )
        assert (await read_until(stream, b"\r\n")).startswith(b"HTTP/1.1 504 ")
        assert proxy.world.all_closed


async def test_an_address_that_never_answers_is_given_up_for_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = world_of(HttpServer())
    world.names["example.org"] = ["8.8.4.4", PUBLIC]

    async def connect(address: object, port: int) -> trio.abc.HalfCloseableStream:
        if str(address) == "8.8.4.4":
            await trio.sleep_forever()
        return await world.connect(address, port)  # type: ignore[arg-type]  # an address it is

    async with open_proxy(world, connect=connect) as proxy:
        stream = await proxy.tell(get_request("http://example.org/"))
        await read_until(stream, b"hi")
        assert trio.current_time() == pytest.approx(LIMITS.connect_seconds / 2)


async def test_a_name_that_is_never_resolved_is_a_504(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()

    async def hang(name: str) -> list[object]:
        return await trio.sleep_forever()

    world.resolve = hang  # type: ignore[method-assign, assignment]  # a resolver that never answers
    async with open_proxy(world) as proxy:
        stream = await proxy.tell(connect_request("example.org:443"))
        answer = await read_until(stream, b"\r\n")
        assert answer == b"HTTP/1.1 504 example.org:443 failed: it did not answer within 20 s.\r\n"


async def test_what_is_left_of_a_tunnel_gets_a_moment_when_one_side_has_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def say_bye(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"bye")

    async def listen(stream: trio.abc.Stream) -> None:
        assert await read_all(stream) == b"last words"
        heard.set()

    heard = trio.Event()
    async with open_proxy(world_of(say_bye)) as proxy:
        started = trio.current_time()
        stream = await proxy.tunnel()
        assert await read_all(stream) == b"bye"
        assert trio.current_time() == pytest.approx(started + LIMITS.linger_seconds)
    async with open_proxy(world_of(listen)) as proxy:
        started = trio.current_time()
        stream = await proxy.tunnel()
        await stream.send_all(b"last words")
        await stream.aclose()
        await heard.wait()
        [decision] = await proxy.wait_decisions(1)
        assert decision.bytes_sent == len(b"last words")
        assert trio.current_time() == started  # the server was told, and did not have to be awaited


async def test_a_tunnel_to_a_server_that_has_gone_ends_with_the_next_byte(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def go(stream: trio.abc.Stream) -> None:
        await stream.aclose()

    async with open_proxy(world_of(go)) as proxy:
        started = trio.current_time()
        stream = await proxy.tunnel()
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(b"anybody?")
        assert await read_all(stream) == b""
        assert trio.current_time() == started
        assert (await proxy.decision()).reason == "the server broke off"


async def test_a_guest_that_takes_no_more_bytes_ends_its_tunnel_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_proxy(world_of(flood)) as proxy:
        started = trio.current_time()
        stream = await proxy.tunnel()
        assert isinstance(stream, trio.StapledStream)
        await stream.receive_stream.aclose()
        [decision] = await proxy.wait_decisions(1)
        assert decision.reason == GUEST_BROKE_OFF
        assert trio.current_time() == started


async def test_a_guest_that_is_slow_to_read_late_bytes_gets_the_whole_limit_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def late(stream: trio.abc.Stream) -> None:
        await trio.sleep(LIMITS.idle_seconds - 1)
        await stream.send_all(b"late")
        await trio.sleep_forever()

    make_pair = trio.testing.lockstep_stream_pair
    async with open_proxy(world_of(late), make_pair=make_pair) as proxy:
        stream = await proxy.tunnel()
        await trio.sleep(LIMITS.idle_seconds + 10)
        assert proxy.decisions == []
        assert await read_until(stream, b"late") == b"late"


async def test_a_guest_may_finish_sending_what_is_refused_so_that_it_sees_the_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_proxy() as proxy:
        stream = await proxy.tell(
            b"POST http://10.0.0.1/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        )
        await read_until(stream, b"NETWORKS.\n")
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        await stream.send_all(b"body")  # breaks if the proxy has closed already
        assert await read_all(stream) == b""
        assert trio.current_time() == pytest.approx(started + LIMITS.linger_seconds)


async def test_a_flood_does_not_outlast_the_end_of_the_other_side(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Lingering is not put off by what goes on."""

    async def slow_flood(stream: trio.abc.Stream) -> None:
        while True:
            await trio.sleep(0.5)
            await stream.send_all(b"x")

    async with open_proxy(world_of(slow_flood)) as proxy:
        stream = await proxy.tunnel()
        assert isinstance(stream, trio.StapledStream)
        await stream.send_eof()
        started = trio.current_time()
        await read_all(stream)
        assert trio.current_time() == pytest.approx(started + LIMITS.linger_seconds)
