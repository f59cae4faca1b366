"""A guest and a world for the proxy: streams in memory, or sockets on the loopback interface."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address

import h11
import trio
import trio.testing

from supervisor.egress.addresses import AddressRule, IPAddress, address_rule
from supervisor.egress.policy import DEFAULT_PORTS, Decision, EgressLimits, EgressPolicy
from supervisor.egress.proxy import serve_egress
from supervisor.egress.targets import parse_domain
from supervisor.egress.way_out import Connect, connect_tcp

LIMITS = EgressLimits(connect_seconds=20, idle_seconds=60, linger_seconds=2)
SHORT_LINGER = replace(LIMITS, linger_seconds=0.1)
Server = Callable[[trio.abc.Stream], Awaitable[None]]
Stream = trio.abc.HalfCloseableStream
StreamPair = Callable[[], tuple[Stream, Stream]]


class GuestPort(trio.abc.Listener[trio.abc.Stream]):
    """The host's end of vsock port 3128: `connect` is the guest."""

    def __init__(self, make_pair: StreamPair = trio.testing.memory_stream_pair) -> None:
        self._make_pair = make_pair
        self._send, self._receive = trio.open_memory_channel[Stream](1000)
        self._streams: list[Stream] = []
        self.accepted: list[Watched] = []

    def connect(self) -> trio.abc.Stream:
        near, far = self._make_pair()
        self._streams += [near, far]
        self._send.send_nowait(far)
        return near

    async def accept(self) -> trio.abc.Stream:
        stream = Watched(await self._receive.receive())
        self.accepted.append(stream)
        return stream

    async def aclose(self) -> None:
        for stream in self._streams:
            with trio.move_on_after(1, shield=True):  # the test may have been cancelled
                await trio.aclose_forcefully(stream)


class Watched(trio.abc.HalfCloseableStream):
    """A stream that knows whether it has been closed."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self._stream = stream
        self.closed = trio.Event()

    @property
    def is_closed(self) -> bool:
        return self.closed.is_set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self.closed.set()
        await self._stream.aclose()


@dataclass
class World:
    """Names and servers in memory. Knows what was looked up, and what was connected to."""

    names: dict[str, Sequence[str]] = field(default_factory=dict)
    servers: dict[str, Server] = field(default_factory=dict)
    """By address; a server serves every port."""
    make_pair: StreamPair = trio.testing.memory_stream_pair
    lookups: list[str] = field(default_factory=list)
    connections: list[tuple[str, int]] = field(default_factory=list)
    streams: list[Watched] = field(default_factory=list)
    nursery: trio.Nursery | None = None

    async def resolve(self, name: str) -> Sequence[IPAddress]:
        await trio.lowlevel.checkpoint()
        self.lookups.append(name)
        return [ip_address(address) for address in self.names.get(name, ())]

    async def connect(self, address: IPAddress, port: int) -> Stream:
        await trio.lowlevel.checkpoint()
        self.connections.append((str(address), port))
        server = self.servers.get(str(address))
        if server is None:
            raise OSError(111, "Connection refused")
        near, far = self.make_pair()
        stream = Watched(near)
        self.streams.append(stream)
        assert self.nursery is not None
        self.nursery.start_soon(_serve, server, far)
        return stream

    @property
    def all_closed(self) -> bool:
        return all(stream.is_closed for stream in self.streams)


async def _serve(server: Server, stream: trio.abc.Stream) -> None:
    try:
        await server(stream)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        await trio.aclose_forcefully(stream)


@dataclass
class Proxy:
    """A running proxy as its tests see it."""

    port: GuestPort
    world: World
    decisions: list[Decision] = field(default_factory=list)
    _decided: trio.Event = field(default_factory=trio.Event)

    async def on_decision(self, decision: Decision) -> None:
        await trio.lowlevel.checkpoint()
        self.decisions.append(decision)
        self._decided.set()
        self._decided = trio.Event()

    async def wait_decisions(self, count: int) -> list[Decision]:
        """Wait until so many requests have been reported."""
        while len(self.decisions) < count:
            await self._decided.wait()
        return self.decisions

    def connect(self) -> trio.abc.Stream:
        return self.port.connect()

    async def ask(self, request: bytes) -> bytes:
        """Send bytes on a connection of their own and return all that comes until its end."""
        return await read_all(await self.tell(request))

    async def tell(self, request: bytes) -> trio.abc.Stream:
        stream = self.connect()
        await stream.send_all(request)
        return stream

    async def tunnel(self, target: str = "example.org:443") -> trio.abc.Stream:
        """Open a tunnel, past its answer."""
        stream = await self.tell(connect_request(target))
        assert await read_until(stream, b"\r\n\r\n") == (
            b"HTTP/1.1 200 Connection established\r\n\r\n"
        )
        return stream

    async def decision(self) -> Decision:
        """Wait for what is under way to settle, and return the one decision that was reported."""
        await trio.testing.wait_all_tasks_blocked()
        [decision] = self.decisions
        return decision


@asynccontextmanager
async def open_proxy(
    world: World | None = None,
    *,
    allowed: Sequence[str] | None = None,
    rule: AddressRule | None = None,
    ports: frozenset[int] = DEFAULT_PORTS,
    limits: EgressLimits = LIMITS,
    make_pair: StreamPair = trio.testing.memory_stream_pair,
    connect: Connect | None = None,
) -> AsyncIterator[Proxy]:
    """Run a proxy between a guest and a world, while the block lasts."""
    world = world or World()
    domains = None if allowed is None else tuple(parse_domain(entry) for entry in allowed)
    policy = EgressPolicy(rule or address_rule(), domains, ports)
    proxy = Proxy(GuestPort(make_pair), world)
    async with proxy.port, trio.open_nursery() as outer, trio.open_nursery() as nursery:
        world.nursery = outer

        async def run() -> None:
            await serve_egress(
                proxy.port,
                policy,
                limits,
                world.resolve,
                proxy.on_decision,
                connect=connect or world.connect,
            )

        nursery.start_soon(run)
        yield proxy
        nursery.cancel_scope.cancel(reason="the test is over")
        outer.cancel_scope.cancel(reason="the test is over")


@asynccontextmanager
async def open_server(serve: Server) -> AsyncIterator[int]:
    """Run a TCP server on the loopback interface and yield its port."""
    async with trio.open_nursery() as nursery:

        async def handler(stream: trio.SocketStream) -> None:
            await _serve(serve, stream)

        [listener] = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel(reason="the test is over")


@asynccontextmanager
async def open_real_proxy(
    port: int,
    limits: EgressLimits = SHORT_LINGER,
    allowed: Sequence[str] | None = None,
) -> AsyncIterator[Proxy]:
    """Run a proxy over sockets: `example.org:PORT` is a server on the loopback interface."""
    world = World(names={"example.org": ["127.0.0.1"]})
    async with open_proxy(
        world,
        allowed=allowed,
        rule=lambda address: None if str(address) == "127.0.0.1" else "not the test's server",
        ports=frozenset({port}),
        limits=limits,
        make_pair=socket_pair,
        connect=connect_tcp,
    ) as proxy:
        yield proxy


def socket_pair() -> tuple[Stream, Stream]:
    """Return what vsock is on the host's side: two ends of a UNIX socket."""
    near, far = trio.socket.socketpair()
    return trio.SocketStream(near), trio.SocketStream(far)


def connect_request(target: str) -> bytes:
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()


def get_request(url: str, *fields: str) -> bytes:
    lines = [f"GET {url} HTTP/1.1", "Host: whatever.example", *fields, "", ""]
    return "\r\n".join(lines).encode()


def status_line(answer: bytes) -> str:
    return answer.partition(b"\r\n")[0].decode()


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Return everything until the end of the stream, or until it breaks."""
    data = bytearray()
    try:
        while more := await stream.receive_some(65536):
            data += more
    except trio.BrokenResourceError:
        pass
    return bytes(data)


async def read_until(stream: trio.abc.ReceiveStream, end: bytes) -> bytes:
    """Return everything up to and with `end`. Reads bytes one by one, so nothing more is taken."""
    data = bytearray()
    while not data.endswith(end):
        more = await stream.receive_some(1)
        assert more, f"ended after {bytes(data)!r}"
        data += more
    return bytes(data)


@dataclass
class HttpServer:
    """A server that keeps what it was asked, and gives one answer to all."""

    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    heads: list[bytes] = field(default_factory=list)
    """As received."""
    bodies: list[bytes] = field(default_factory=list)

    async def __call__(self, stream: trio.abc.Stream) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            more = await stream.receive_some(65536)
            if not more:
                return
            received += more
        self.heads.append(received[: received.index(b"\r\n\r\n") + 4])
        parser = h11.Connection(h11.SERVER)
        parser.receive_data(received)
        data = bytearray()
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(bytes(await stream.receive_some(65536)))
            elif isinstance(event, h11.Data):
                data += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
        self.bodies.append(bytes(data))
        await stream.send_all(self.answer)


async def echo(stream: trio.abc.Stream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


# -- TLS ---------------------------------------------------------------------------------------


def client_hello(name: str | None) -> bytes:
    """Return the first message of a real TLS client that wants `name`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def tls_records(payload: bytes) -> bytes:
    """Return `payload` as one TLS record of the handshake."""
    return b"\x16\x03\x01" + len(payload).to_bytes(2, "big") + payload
