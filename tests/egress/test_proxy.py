"""The proxy as a build uses it: what is served, what is denied, and what is reported of both."""

from __future__ import annotations

import re

import h11
import pytest
import trio
import trio.testing

from supervisor.egress.policy import Decision
from tests.egress.kit import (
    HttpServer,
    World,
    body,
    connect_request,
    echo,
    get_request,
    open_proxy,
    open_real_proxy,
    open_server,
    read_all,
    read_until,
    status_line,
)

PUBLIC = "93.184.216.34"


def world_of(server: HttpServer) -> World:
    return World(names={"example.org": [PUBLIC]}, servers={PUBLIC: server})


# -- over real sockets -------------------------------------------------------------------------


async def test_a_tunnel_carries_bytes_both_ways_and_reports_them_when_it_ends() -> None:
    async with open_server(echo) as port, open_real_proxy(port) as proxy:
        stream = await proxy.tunnel(f"example.org:{port}")
        payload = bytes(range(256)) * 4096
        received = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, payload)
            while len(received) < len(payload):
                received += await stream.receive_some(65536)
        assert received == payload
        assert proxy.decisions == []
        await stream.aclose()
        assert await proxy.wait_decisions(1) == [
            Decision(True, "example.org", port, "", len(payload), len(payload))
        ]


async def test_a_request_is_forwarded_over_tcp() -> None:
    server = HttpServer()
    async with open_server(server) as port, open_real_proxy(port) as proxy:
        stream = await proxy.tell(get_request(f"http://example.org:{port}/a?b", "Accept: x/y"))
        assert await read_until(stream, b"hi") == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
        assert server.heads == [
            f"GET /a?b HTTP/1.1\r\nHost: example.org:{port}\r\nAccept: x/y\r\n"
            "Connection: close\r\n\r\n".encode()
        ]
        await stream.aclose()


async def test_a_tunnel_ends_when_the_server_closes() -> None:
    async def greet(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"hello")

    async with open_server(greet) as port, open_real_proxy(port) as proxy:
        stream = await proxy.tunnel(f"example.org:{port}")
        assert await read_all(stream) == b"hello"


async def test_a_server_that_refuses_the_connection_is_a_502() -> None:
    async with open_server(echo) as port:
        pass  # nothing listens there any more
    async with open_real_proxy(port) as proxy:
        stream = await proxy.tell(connect_request(f"example.org:{port}"))
        assert (await read_until(stream, b"\r\n")).startswith(b"HTTP/1.1 502 example.org")
        [decision] = proxy.decisions
        assert decision.allowed
        assert "refused" in decision.reason


# -- what is denied ----------------------------------------------------------------------------


async def test_a_name_that_is_not_listed_is_denied_before_it_is_looked_up() -> None:
    world = world_of(HttpServer())
    async with open_proxy(world, allowed=["example.org"]) as proxy:
        stream = await proxy.tell(connect_request("example.net:443"))
        answer = await read_until(stream, b"build.\n")
        assert status_line(answer) == (
            "HTTP/1.1 403 example.net:443 is denied: it is not in allowed_domains"
        )
        assert body(answer) == (
            b"example.net:443 is denied: it is not in allowed_domains."
            b" Add it to allowed_domains of the build.\n"
        )
        assert await proxy.decision() == Decision(
            False, "example.net", 443, "it is not in allowed_domains"
        )
        assert (world.lookups, world.connections) == ([], [])


async def test_a_name_is_looked_up_once_and_the_checked_address_is_connected_to() -> None:
    """A name that answers otherwise the second time (rebinding) is not asked a second time."""
    server = HttpServer()
    world = world_of(server)
    async with open_proxy(world) as proxy:
        stream = await proxy.tell(get_request("http://example.org/"))
        await read_until(stream, b"hi")
        assert world.lookups == ["example.org"]
        assert world.connections == [(PUBLIC, 80)]
        world.names["example.org"] = ["127.0.0.1"]
        await stream.send_all(get_request("http://example.org/"))
        assert b"a loopback address" in await read_until(stream, b"NETWORKS.\n")
        assert world.connections == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.102.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "fd00:ec2::254",
        "64:ff9b::7f00:1",
        "fe80::1",
    ],
)
async def test_a_special_address_is_never_connected_to(address: str) -> None:
    world = World(names={"inside.example": [address]}, servers={address: HttpServer()})
    literal = f"[{address}]" if ":" in address else address
    async with open_proxy(world) as proxy:
        for target in ("inside.example", literal):
            stream = await proxy.tell(connect_request(f"{target}:443"))
            assert (await read_until(stream, b"\r\n")).startswith(b"HTTP/1.1 403 ")
            stream = await proxy.tell(get_request(f"http://{target}/latest/meta-data/"))
            assert (await read_until(stream, b"\r\n")).startswith(b"HTTP/1.1 403 ")
        await trio.testing.wait_all_tasks_blocked()
        assert world.connections == []
        assert [decision.allowed for decision in proxy.decisions] == [False] * 4


@pytest.mark.parametrize(
    "target",
    [
        "2130706433",
        "0x7f.1",
        "127.1",
        "0177.0.0.1",
        "user@example.org",
        "example%2eorg",
        "[::1%lo]",
    ],
)
async def test_an_odd_spelling_is_denied_unread(target: str) -> None:
    world = world_of(HttpServer())
    async with open_proxy(world) as proxy:
        stream = await proxy.tell(connect_request(f"{target}:443"))
        assert (await read_until(stream, b"\r\n")).startswith(b"HTTP/1.1 403 ")
        assert await proxy.decision() == Decision(
            False, f"{target}:443", 0, proxy.decisions[0].reason
        )
        assert (world.lookups, world.connections) == ([], [])


async def test_only_the_good_addresses_of_a_name_are_tried() -> None:
    world = World(
        names={"mixed.example": ["10.0.0.1", "203.0.113.9", PUBLIC]},
        servers={PUBLIC: HttpServer(), "10.0.0.1": HttpServer()},
    )
    async with open_proxy(world) as proxy:
        stream = await proxy.tell(get_request("http://mixed.example/"))
        await read_until(stream, b"hi")
        assert world.connections == [(PUBLIC, 80)]


async def test_the_next_address_is_tried_when_one_refuses() -> None:
    world = World(names={"example.org": ["2606:4700::1", PUBLIC]}, servers={PUBLIC: HttpServer()})
    async with open_proxy(world) as proxy:
        stream = await proxy.tell(get_request("http://example.org/"))
        await read_until(stream, b"hi")
        assert world.connections == [("2606:4700::1", 80), (PUBLIC, 80)]


async def test_the_registrys_own_port_is_denied() -> None:
    world = World(names={"registry.example": [PUBLIC]}, servers={PUBLIC: echo})
    async with open_proxy(world) as proxy:
        for target in ("10.102.0.1:8083", "127.0.0.1:8083", "registry.example:8083"):
            stream = await proxy.tell(connect_request(target))
            assert (await read_until(stream, b"\r\n")).startswith(b"HTTP/1.1 403 ")
        assert world.connections == []


async def test_a_name_that_does_not_exist_is_a_502() -> None:
    async with open_proxy() as proxy:
        stream = await proxy.tell(connect_request("nowhere.example:443"))
        assert (await read_until(stream, b"\r\n")).startswith(b"HTTP/1.1 502 nowhere.example")
        assert (await proxy.decision()).reason == "its name could not be resolved"


@pytest.mark.parametrize("target", ["/", "*", "https://example.org/", "ftp://example.org/"])
async def test_what_is_no_request_to_a_proxy_is_denied_with_a_reason(target: str) -> None:
    world = world_of(HttpServer())
    async with open_proxy(world) as proxy:
        stream = await proxy.tell(get_request(target))
        assert (await read_until(stream, b"\r\n")).startswith(b"HTTP/1.1 403 ")
        assert world.connections == []


async def test_a_denied_head_request_gets_no_body() -> None:
    async with open_proxy(allowed=[]) as proxy:
        stream = await proxy.tell(b"HEAD http://example.org/ HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        first = await read_until(stream, b"\r\n\r\n")
        second = await read_until(stream, b"\r\n\r\n")
        assert first == second


# -- what is forwarded -------------------------------------------------------------------------


async def test_the_host_is_the_targets_and_hop_by_hop_fields_are_left_out() -> None:
    server = HttpServer()
    async with open_proxy(world_of(server)) as proxy:
        stream = await proxy.tell(
            get_request(
                "http://EXAMPLE.org.:80/a",
                "Proxy-Authorization: Basic c2VjcmV0",
                "Proxy-Connection: keep-alive",
                "Proxy-Anything: x",
                "Connection: keep-alive, X-Private, Host, content-length",
                "X-Private: 1",
                "Keep-Alive: timeout=5",
                "TE: trailers",
                "Trailer: X",
                "Authorization: Bearer kept",
                "Cookie: kept",
            )
        )
        await read_until(stream, b"hi")
    assert server.heads == [
        b"GET /a HTTP/1.1\r\nHost: example.org\r\nAuthorization: Bearer kept\r\n"
        b"Cookie: kept\r\nConnection: close\r\n\r\n"
    ]


async def test_a_responses_hop_by_hop_fields_are_left_out() -> None:
    server = HttpServer(
        b"HTTP/1.1 407 Odd\r\nProxy-Authenticate: Basic\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n"
        b"Keep-Alive: x\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Length: 2\r\n\r\nhi"
    )
    async with open_proxy(world_of(server)) as proxy:
        stream = await proxy.tell(get_request("http://example.org/"))
        assert await read_until(stream, b"hi") == (
            b"HTTP/1.1 407 Odd\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Length: 2\r\n\r\nhi"
        )


async def test_requests_follow_each_other_on_one_connection_each_with_its_own_decision() -> None:
    """Pipelined, as apt sends them; to several servers, with a denied one in between."""
    one, two = HttpServer(), HttpServer(b"HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\nnone")
    world = World(
        names={"example.org": [PUBLIC], "example.net": ["8.8.8.8"]},
        servers={PUBLIC: one, "8.8.8.8": two},
    )
    async with open_proxy(world) as proxy:
        stream = await proxy.tell(
            get_request("http://example.org/1")
            + get_request("http://192.168.0.1/2")
            + get_request("http://example.net/3")
            + get_request("http://example.org/4", "Connection: close")
        )
        answer = await read_all(stream)
        await trio.testing.wait_all_tasks_blocked()
    assert re.findall(rb"HTTP/1.1 .*", answer) == [
        b"HTTP/1.1 200 OK\r",
        b"HTTP/1.1 403 192.168.0.1:80 is denied: it is a private address\r",
        b"HTTP/1.1 404 No\r",
        b"HTTP/1.1 200 OK\r",
    ]
    assert [head.split()[1] for head in one.heads] == [b"/1", b"/4"]
    assert [head.split()[1] for head in two.heads] == [b"/3"]
    assert [(d.allowed, d.host) for d in proxy.decisions] == [
        (True, "example.org"),
        (False, "192.168.0.1"),
        (True, "example.net"),
        (True, "example.org"),
    ]
    assert len(world.streams) == 3
    assert world.all_closed


@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        ("Content-Length: 11", b"hello world"),
        (
            "Transfer-Encoding: chunked",
            b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n",
        ),
    ],
)
async def test_a_body_is_forwarded_and_the_connection_stays_usable(
    framing: str, sent: bytes
) -> None:
    server = HttpServer()
    async with open_proxy(world_of(server)) as proxy:
        head = f"POST http://example.org/ HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode()
        stream = await proxy.tell(head + sent)
        await read_until(stream, b"hi")
        await stream.send_all(get_request("http://example.org/next"))
        await read_until(stream, b"hi")
        decisions = [(d.allowed, d.reason) for d in proxy.decisions[:1]]
    assert server.bodies == [b"hello world", b""]
    assert framing.encode() in server.heads[0]
    assert b"X-Trailer" not in server.heads[0]
    assert decisions == [(True, "")]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"hi"),
        (b"HTTP/1.0 200 OK\r\n\r\nhi until the end", b"hi until the end"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n", b""),
        (b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nhi\r\n0\r\n\r\n",
            b"hi",
        ),
    ],
)
async def test_every_framing_of_a_response_is_passed_on(answer: bytes, expected: bytes) -> None:
    server = HttpServer(answer)
    async with open_proxy(world_of(server)) as proxy:
        request = get_request("http://example.org/", "Connection: close")
        assert parse_response(await proxy.ask(request)) == expected


async def test_a_client_of_http_1_0_gets_an_answer_that_ends_with_the_connection() -> None:
    server = HttpServer(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    )
    async with open_proxy(world_of(server)) as proxy:
        answer = await proxy.ask(b"GET http://example.org/ HTTP/1.0\r\n\r\n")
        assert body(answer) == b"hi"
        assert b"chunked" not in answer


async def test_head_is_forwarded_with_the_length_and_without_a_body() -> None:
    server = HttpServer(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    async with open_proxy(world_of(server)) as proxy:
        stream = await proxy.tell(b"HEAD http://example.org/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"Content-Length: 1000" in await read_until(stream, b"\r\n\r\n")
        assert (await proxy.decision()).reason == ""


async def test_expect_continue_is_the_servers_to_answer() -> None:
    hinted, may_continue = trio.Event(), trio.Event()

    async def server(stream: trio.abc.Stream) -> None:
        assert b"Expect: 100-continue" in await read_until(stream, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        hinted.set()
        await may_continue.wait()
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await read_until(stream, b"body") == b"body"
        await stream.send_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

    world = World(names={"example.org": [PUBLIC]}, servers={PUBLIC: server})
    async with open_proxy(world) as proxy:
        stream = await proxy.tell(
            b"PUT http://example.org/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: 4\r\n\r\n"
        )
        interim: list[bytes] = []

        async def wait_for_permission() -> None:
            interim.append(await read_until(stream, b"\r\n\r\n"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_permission)
            await hinted.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert interim == []  # a hint is no permission
            may_continue.set()
        assert interim == [b"HTTP/1.1 100 \r\n\r\n"]
        await stream.send_all(b"body")
        assert (await read_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 201")


async def test_an_early_refusal_reaches_a_guest_that_waits_for_continue() -> None:
    server = World(names={"example.org": [PUBLIC]})

    async def refuse(stream: trio.abc.Stream) -> None:
        await read_until(stream, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")

    server.servers[PUBLIC] = refuse
    async with open_proxy(server) as proxy:
        stream = await proxy.tell(
            b"PUT http://example.org/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: 4\r\n\r\n"
        )
        assert (await read_until(stream, b"no")).startswith(b"HTTP/1.1 413")


async def test_an_upgrade_is_never_asked_for_and_never_accepted() -> None:
    server = HttpServer()
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    async with open_proxy(world_of(server)) as proxy:
        stream = await proxy.tell(get_request("http://example.org/", *upgrade))
        await read_until(stream, b"hi")
        assert b"pgrade" not in server.heads[0]
        assert b"HTTP2" not in server.heads[0]
        # The connection goes on as HTTP/1.1.
        server.answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\nraw bytes"
        await stream.send_all(get_request("http://example.org/", *upgrade))
        answer = await read_until(stream, b"incomplete\n")
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"raw bytes" not in answer


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad Field: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        b"\x16\x03\x01" * 100,
    ],
)
async def test_a_server_that_speaks_nonsense_is_a_502(answer: bytes) -> None:
    async with open_proxy(world_of(HttpServer(answer))) as proxy:
        stream = await proxy.tell(get_request("http://example.org/"))
        assert (await read_until(stream, b"\r\n")).startswith(b"HTTP/1.1 502 ")
        decision = await proxy.decision()
        assert decision.allowed
        assert decision.reason != ""


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_a_truncated_response_is_not_made_to_look_whole(answer: bytes) -> None:
    async with open_proxy(world_of(HttpServer(answer))) as proxy:
        received = await proxy.ask(get_request("http://example.org/"))
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        assert not received.endswith(b"0\r\n\r\n")
        assert "incomplete" in (await proxy.decision()).reason


async def test_what_a_server_says_ahead_of_the_request_is_not_believed_twice() -> None:
    """One connection carries one request: what a server sends behind its answer goes nowhere."""
    server = HttpServer(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nX-Poison: 1\r\n\r\n"
    )
    async with open_proxy(world_of(server)) as proxy:
        stream = await proxy.tell(get_request("http://example.org/1"))
        await read_until(stream, b"hi")
        server.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue"
        await stream.send_all(get_request("http://example.org/2"))
        assert b"Poison" not in await read_until(stream, b"true")


async def test_bytes_behind_a_connect_request_are_the_tunnels_first() -> None:
    world = World(names={"example.org": [PUBLIC]}, servers={PUBLIC: echo})
    async with open_proxy(world) as proxy:
        stream = await proxy.tell(connect_request("example.org:443") + b"client hello")
        assert (await read_until(stream, b"hello")).endswith(b"\r\n\r\nclient hello")


def parse_response(data: bytes) -> bytes:
    """Return the body as a client reads it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    client.receive_data(b"")
    found = bytearray()
    while True:
        match client.next_event():
            case h11.Data() as event:
                found += event.data
            case h11.EndOfMessage():
                return bytes(found)
