"""How a tunnel may begin, if a build may reach certain names only.

What is allowed is a name; what is connected to is an address, and that can answer for other names
as well. In a tunnel the guest says which one it means, so its first message is read before anything
is passed on. What comes behind it is encrypted, and nobody's but the server's.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from supervisor.egress.clienthello import NoHello, read_client_hello
from supervisor.egress.peer import CHUNK_BYTES
from supervisor.egress.policy import EgressPolicy
from supervisor.egress.targets import BadTarget, Destination, parse_connect_target


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a tunnel must end before it has begun."""

    reason: str


async def receive_opening(
    guest: trio.abc.ReceiveStream, first: bytes, policy: EgressPolicy, destination: Destination
) -> bytes | Denied:
    """Return what the guest says first, to be passed on, if it may say that.

    `first` is what of it has been read already. Fewer bytes than a hello are returned if the guest
    ends in it. Raises what the stream raises.
    """
    data = bytearray(first)
    while True:
        try:
            hello = read_client_hello(bytes(data))
        except NoHello as exc:
            return Denied(str(exc))
        if hello is not None:
            why = _judge(hello.server_name, policy, destination)
            return bytes(data) if why is None else Denied(why)
        received = await guest.receive_some(CHUNK_BYTES)
        if not received:
            return bytes(data)
        data += received


def _judge(name: str | None, policy: EgressPolicy, destination: Destination) -> str | None:
    """Return why a server must not be asked for, or None."""
    if name is None:
        return "its TLS hello names no server"
    try:
        meant = parse_connect_target(f"{name}:{destination.port}")
    except BadTarget:
        return "the server name in its TLS hello is no name"
    if meant == destination or policy.why_denied(meant) is None:
        return None
    return f"its TLS hello names {meant.name}, which is not in allowed_domains"
