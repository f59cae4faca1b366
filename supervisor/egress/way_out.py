"""Connections to the outside: opened to checked addresses only, and every byte of them counted."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence

import trio

from supervisor.egress.addresses import IPAddress
from supervisor.egress.policy import EgressLimits, EgressPolicy, Refusal
from supervisor.egress.resolver import Resolver
from supervisor.egress.targets import Destination

Connect = Callable[[IPAddress, int], Awaitable[trio.abc.HalfCloseableStream]]
"""Opens a connection to an address and port. Raises OSError."""

LOOKUPS_PER_MACHINE = 4
"""At once. The threads are shared by all builds; slow names of one must not take them all."""


class OverBudget(Exception):
    """The machine has used all of its bytes."""


class Budget:
    """What is left of a machine's bytes and requests."""

    def __init__(self, limits: EgressLimits) -> None:
        self._bytes = limits.max_bytes
        self._requests = limits.max_requests
        self.limits = limits

    @property
    def has_bytes(self) -> bool:
        """Say whether any more may be transferred."""
        return self._bytes > 0

    @property
    def refused_requests(self) -> int:
        """How many requests were too many."""
        return max(0, -self._requests)

    def take_request(self) -> bool:
        """Count a request; False if it was one too many."""
        self._requests -= 1
        return self._requests >= 0

    def take_bytes(self, count: int) -> None:
        """Count bytes. Raises OverBudget if they were too many; then none are left."""
        self._bytes = max(-1, self._bytes - count)
        if self._bytes < 0:
            raise OverBudget


class Meter:
    """How much one request has transferred."""

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0


class MeteredStream(trio.abc.HalfCloseableStream):
    """A connection to the outside that counts, and charges the machine's budget.

    Both directions raise OverBudget once the budget is used up: the bytes that are too many are not
    passed on.
    """

    def __init__(self, stream: trio.abc.HalfCloseableStream, meter: Meter, budget: Budget) -> None:
        self._stream = stream
        self._meter = meter
        self._budget = budget

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, after the bytes are paid for. Raises OverBudget."""
        self._budget.take_bytes(len(data))
        await self._stream.send_all(data)
        self._meter.sent += len(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the connection does."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive. Raises OverBudget if this was too much; the bytes are dropped."""
        data = await self._stream.receive_some(max_bytes)
        self._meter.received += len(data)
        self._budget.take_bytes(len(data))
        return data

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()


class WayOut:
    """Opens connections for one machine."""

    def __init__(
        self, policy: EgressPolicy, limits: EgressLimits, resolver: Resolver, connect: Connect
    ) -> None:
        self.policy = policy
        self._connect_seconds = limits.connect_seconds
        self._resolver = resolver
        self._connect = connect
        self._lookups = trio.CapacityLimiter(LOOKUPS_PER_MACHINE)

    async def open(self, destination: Destination) -> trio.abc.HalfCloseableStream | Refusal:
        """Connect to a destination if the policy allows it. Cancelling leaves nothing open.

        The name is resolved here and nowhere else, and what is connected to is the address that was
        checked: a name that changes its mind (rebinding) changes nothing.
        """
        if refusal := self.policy.why_denied(destination):
            return refusal
        with trio.move_on_after(self._connect_seconds):
            addresses = await self._resolve(destination.host)
            if refusal := self.policy.why_unreachable(addresses):
                return refusal
            allowed = [a for a in addresses if self.policy.address_rule(a) is None]
            return await self._connect_first(allowed, destination.port)
        return Refusal(504, f"it did not answer within {self._connect_seconds:g} s")

    async def _resolve(self, host: str | IPAddress) -> Sequence[IPAddress]:
        if not isinstance(host, str):
            return (host,)
        async with self._lookups:
            return await self._resolver(host)

    async def _connect_first(
        self, addresses: Sequence[IPAddress], port: int
    ) -> trio.abc.HalfCloseableStream | Refusal:
        """Try one address after the other; each gets its share of the time, as one may hang."""
        why = "it did not answer"
        for address in addresses:
            with trio.move_on_after(self._connect_seconds / len(addresses)):
                try:
                    return await self._connect(address, port)
                except OSError as exc:
                    why = _explain(exc)
        return Refusal(502, why)


async def connect_tcp(address: IPAddress, port: int) -> trio.abc.HalfCloseableStream:
    """Connect over TCP. An address written out is never looked up. Raises OSError."""
    family = trio.socket.AF_INET if address.version == 4 else trio.socket.AF_INET6
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        await sock.connect((str(address), port))
    except (OSError, trio.Cancelled):
        sock.close()
        raise
    return trio.SocketStream(sock)


def _explain(exc: OSError) -> str:
    why = os.strerror(exc.errno) if exc.errno else "unknown error"
    return f"it cannot be connected to ({why.lower()})"
