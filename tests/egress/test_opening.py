"""How tunnels may begin: a name that is allowed does not lead to one that is not."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest
import trio
import trio.testing

from supervisor.egress.policy import Decision
from tests.egress.kit import (
    LIMITS,
    Proxy,
    World,
    client_hello,
    connect_request,
    echo,
    open_proxy,
    read_all,
    read_until,
    tls_records,
)

PUBLIC = "93.184.216.34"
HERE = "shop.example.org"
ALLOWED = ["*.example.org"]


def world() -> World:
    return World(names={HERE: [PUBLIC]}, servers={PUBLIC: echo})


async def say(proxy: Proxy, opening: bytes, target: str = f"{HERE}:443") -> bytes:
    """Open a tunnel, say something in it, and return what comes back before it falls silent."""
    stream = await proxy.tunnel(target)
    await stream.send_all(opening)
    heard = bytearray()
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            while data := await stream.receive_some(65536):
                heard.extend(data)
            nursery.cancel_scope.cancel(reason="the end")

        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="silence")
    await stream.aclose()
    return bytes(heard)


@pytest.mark.parametrize("name", [HERE, "SHOP.example.org", "static.example.org"])
async def test_a_hello_to_an_allowed_name_is_passed_on_as_it_is(name: str) -> None:
    async with open_proxy(world(), allowed=ALLOWED) as proxy:
        hello = client_hello(name) + b"what comes behind it"
        assert await say(proxy, hello) == hello
        assert await proxy.decision() == Decision(True, HERE, 443, "", len(hello), len(hello))


@pytest.mark.parametrize(
    ("opening", "why"),
    [
        (
            client_hello("evil.example.net"),
            "its TLS hello names evil.example.net, which is not in allowed_domains",
        ),
        (
            client_hello("example.org"),
            "its TLS hello names example.org, which is not in allowed_domains",
        ),
        (client_hello(None), "its TLS hello names no server"),
        (b"GET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n", "it does not begin as TLS"),
        (b"SSH-2.0-x\r\n", "it does not begin as TLS"),
        (tls_records(b"\x02\x00\x00\x01x"), "its first TLS message is no client hello"),
    ],
)
@pytest.mark.parametrize("port", [80, 443])
async def test_what_could_reach_another_server_behind_the_address_is_cut_off(
    opening: bytes, why: str, port: int
) -> None:
    async with open_proxy(world(), allowed=ALLOWED) as proxy:
        assert await say(proxy, opening, f"{HERE}:{port}") == b""
        assert await proxy.decision() == Decision(False, HERE, port, why)
        assert proxy.world.all_closed


# A ServerHello whose random number asks for another ClientHello (RFC 8446, 4.1.3).
RETRY = tls_records(b"\x02\x00\x00\x28\x03\x03" + sha256(b"HelloRetryRequest").digest() + bytes(6))
HELLO = client_hello(HERE)
CHANGE = b"\x14\x03\x03\x00\x01\x01"


async def silent(stream: trio.abc.Stream) -> None:
    """Take everything and say nothing."""
    await read_all(stream)


async def ask_again(stream: trio.abc.Stream) -> None:
    """Want another hello, and then say everything that comes back."""
    await read_until(stream, HELLO)
    await stream.send_all(RETRY)
    await echo(stream)


@pytest.mark.parametrize("change", [b"", CHANGE])
@pytest.mark.parametrize("is_ahead", [False, True])
async def test_a_second_hello_that_a_server_asks_for_is_judged_too(
    change: bytes, is_ahead: bool
) -> None:
    evil = change + client_hello("evil.example.net")
    servers = World(names={HERE: [PUBLIC]}, servers={PUBLIC: ask_again})
    async with open_proxy(servers, allowed=ALLOWED) as proxy:
        if is_ahead:  # said before the server has asked
            assert await say(proxy, HELLO + evil) == RETRY
        else:
            stream = await proxy.tunnel(f"{HERE}:443")
            await stream.send_all(HELLO)
            assert await read_until(stream, RETRY) == RETRY
            await stream.send_all(evil)
            assert await read_all(stream) == b""
        told = await proxy.decision()
        assert (told.allowed, told.bytes_sent) == (False, len(HELLO))
        assert "evil.example.net" in told.reason
        assert proxy.world.all_closed


async def test_a_second_hello_to_an_allowed_name_goes_on() -> None:
    servers = World(names={HERE: [PUBLIC]}, servers={PUBLIC: ask_again})
    async with open_proxy(servers, allowed=ALLOWED) as proxy:
        second = CHANGE + HELLO + b"what comes behind it"
        assert await say(proxy, HELLO + second) == RETRY + second


@pytest.mark.parametrize("answer", [b"", b"\x15\x03\x03\x00\x02\x02\x28", b"\x16\x03\x03"])
async def test_a_server_that_ends_before_it_has_answered_ends_the_tunnel(answer: bytes) -> None:
    async def refuse(stream: trio.abc.Stream) -> None:
        await read_until(stream, HELLO)
        await stream.send_all(answer)

    servers = World(names={HERE: [PUBLIC]}, servers={PUBLIC: refuse})
    async with open_proxy(servers, allowed=ALLOWED) as proxy:
        assert await say(proxy, HELLO) == answer
        assert (await proxy.decision()).allowed


async def test_a_server_that_says_nothing_to_a_hello_holds_its_slot_no_longer_than_silence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    servers = World(names={HERE: [PUBLIC]}, servers={PUBLIC: silent})
    async with open_proxy(servers, allowed=ALLOWED) as proxy:
        stream = await proxy.tunnel(f"{HERE}:443")
        await stream.send_all(HELLO)
        assert await read_all(stream) == b""
        told = await proxy.decision()
        assert (told.allowed, told.reason) == (True, "it did not begin within 60 s")
        assert proxy.world.all_closed


async def test_a_hello_over_the_byte_limit_is_said_to_be() -> None:
    few = replace(LIMITS, max_bytes=10)
    async with open_proxy(world(), allowed=ALLOWED, limits=few) as proxy:
        assert await say(proxy, HELLO) == b""
        assert (await proxy.decision()).reason == "the build has used up its bytes"


async def test_a_hello_that_comes_in_pieces_is_waited_for() -> None:
    hello = client_hello(HERE)
    async with open_proxy(world(), allowed=ALLOWED) as proxy:
        stream = await proxy.tunnel(f"{HERE}:443")
        for at in range(0, len(hello), 50):
            await stream.send_all(hello[at : at + 50])
            await trio.testing.wait_all_tasks_blocked()
        assert await read_until(stream, hello) == hello


async def test_a_hello_that_came_with_the_request_is_read_too() -> None:
    async with open_proxy(world(), allowed=ALLOWED) as proxy:
        request = connect_request(f"{HERE}:443") + client_hello("evil.example.net")
        assert (await proxy.ask(request)).count(b"\r\n\r\n") == 1
        assert not (await proxy.decision()).allowed


async def test_a_hello_that_never_ends_holds_its_slot_no_longer_than_silence_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_proxy(world(), allowed=ALLOWED) as proxy, trio.open_nursery() as nursery:
        stream = await proxy.tunnel(f"{HERE}:443")
        began = trio.current_time()

        async def drip() -> None:
            for byte in client_hello(HERE):
                await stream.send_all(bytes([byte]))
                await trio.sleep(LIMITS.idle_seconds / 4)

        nursery.start_soon(drip)
        await read_all(stream)
        nursery.cancel_scope.cancel(reason="let go")
        assert trio.current_time() - began <= LIMITS.idle_seconds
    assert proxy.decisions[0].bytes_sent == 0


@pytest.mark.parametrize("sent", [b"", client_hello(HERE)[:20]], ids=["nothing", "a_part"])
async def test_a_guest_that_ends_before_its_hello_leaves_nothing_open(sent: bytes) -> None:
    async with open_proxy(world(), allowed=ALLOWED) as proxy:
        stream = await proxy.tunnel(f"{HERE}:443")
        await stream.send_all(sent)
        await stream.aclose()
        await proxy.wait_decisions(1)
        assert proxy.world.all_closed


async def test_without_a_list_a_tunnel_may_begin_in_any_way() -> None:
    async with open_proxy(world()) as proxy:
        assert await say(proxy, b"anything") == b"anything"


async def test_a_port_that_the_operator_opened_may_begin_in_any_way() -> None:
    async with open_proxy(world(), allowed=ALLOWED, ports=frozenset({5432})) as proxy:
        assert await say(proxy, b"anything", f"{HERE}:5432") == b"anything"


async def test_an_address_that_is_listed_itself_may_be_asked_for_any_name() -> None:
    async with open_proxy(world(), allowed=[PUBLIC]) as proxy:
        assert await say(proxy, b"anything", f"{PUBLIC}:443") == b"anything"
