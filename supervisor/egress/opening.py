"""How a tunnel may begin, if a build may reach certain names only.

What is allowed is a name; what is connected to is an address, and that can answer for other names
as well. In a tunnel the guest says which one it means, so its first message is read before anything
is passed on. A server may ask for that message once more, and would obey the second one: so its
answer is awaited, and the second one read as well. What comes behind is encrypted, and nobody's but
the server's.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from supervisor.egress.clienthello import (
    NoHello,
    is_retry_request,
    read_client_hello,
    skip_cipher_changes,
)
from supervisor.egress.peer import CHUNK_BYTES
from supervisor.egress.policy import EgressPolicy
from supervisor.egress.relay import SERVER_BROKE_OFF, USED_UP
from supervisor.egress.targets import BadTarget, Destination, parse_connect_target
from supervisor.egress.way_out import OverBudget


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a tunnel must end before it has begun."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How a tunnel ended before it had begun, with nobody's doing but the server's or a limit's."""

    reason: str


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of a tunnel between two connected streams, which the caller closes."""

    guest: trio.abc.Stream
    server: trio.abc.Stream
    policy: EgressPolicy
    destination: Destination

    async def carry(self, first: bytes) -> bytes | Denied | Ended:
        """Pass on the hello and what the server says to it, and return what of the guest's bytes
        is to be passed on next.

        `first` is what of them has been read already. If the guest ends in its hello, there are
        fewer of them than a hello has. Raises what the guest's stream raises.
        """
        hello = await self._receive_hello(first)
        if not isinstance(hello, _Hello):
            return hello
        try:
            await self.server.send_all(hello.data)
            answer = await self._receive_answer()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return Ended(SERVER_BROKE_OFF)
        except OverBudget:
            return Ended(USED_UP)
        await self.guest.send_all(answer)
        if not is_retry_request(answer):
            return hello.behind
        second = await self._receive_hello(hello.behind, is_second=True)
        return second.data + second.behind if isinstance(second, _Hello) else second

    async def _receive_hello(
        self, first: bytes, *, is_second: bool = False
    ) -> _Hello | bytes | Denied:
        """Return a hello that may be passed on, and what was read behind it; or what there was of
        it, if the guest has ended.
        """
        data = bytearray(first)
        while True:
            start = skip_cipher_changes(bytes(data)) if is_second else 0
            try:
                hello = read_client_hello(bytes(data[start:]))
            except NoHello as exc:
                return Denied(str(exc))
            if hello is not None:
                why = self._judge(hello.server_name)
                end = start + hello.length
                return _Hello(bytes(data[:end]), bytes(data[end:])) if why is None else Denied(why)
            received = await self.guest.receive_some(CHUNK_BYTES)
            if not received:
                return bytes(data)
            data += received

    async def _receive_answer(self) -> bytes:
        """Return enough of what the server says first to know whether it wants another hello."""
        data = bytearray()
        while is_retry_request(bytes(data)) is None:
            received = await self.server.receive_some(CHUNK_BYTES)
            if not received:
                break
            data += received
        return bytes(data)

    def _judge(self, name: str | None) -> str | None:
        """Return why a server must not be asked for, or None."""
        if name is None:
            return "its TLS hello names no server"
        try:
            meant = parse_connect_target(f"{name}:{self.destination.port}")
        except BadTarget:
            return "the server name in its TLS hello is no name"
        if meant == self.destination or self.policy.why_denied(meant) is None:
            return None
        return f"its TLS hello names {meant.name}, which is not in allowed_domains"


@dataclass(frozen=True, slots=True)
class _Hello:
    data: bytes
    behind: bytes
