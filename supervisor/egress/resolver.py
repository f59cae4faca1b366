"""Names to addresses, with the host's own resolver."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

import trio

from supervisor.egress.addresses import IPAddress

Resolver = Callable[[str], Awaitable[Sequence[IPAddress]]]
"""Returns the addresses of a name, the preferred ones first; none if it cannot be resolved."""

MAX_ADDRESSES = 8
"""A name with more is served by the first of them."""


def host_resolver(limiter: trio.CapacityLimiter) -> Resolver:
    """Return the resolver of this host (its hosts file, its DNS servers), in threads of `limiter`.

    Cancelling does not wait for the thread: looking up has no effects. It keeps its place in the
    limiter until the system's own timeout, so that lookups that hang cannot pile up threads.
    """

    async def resolve(name: str) -> Sequence[IPAddress]:
        # As bytes, since Python would run a text through its IDNA codec, which reads names anew.
        return await trio.to_thread.run_sync(
            _resolve_sync, name.encode("ascii"), limiter=limiter, abandon_on_cancel=True
        )

    return resolve


def _resolve_sync(name: bytes) -> Sequence[IPAddress]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:  # gaierror too: no such name, or no answer
        return ()
    # A zone id comes with link-local addresses only; those are refused with or without it.
    addresses = (ip_address(str(entry[4][0]).partition("%")[0]) for entry in found)
    return tuple(dict.fromkeys(addresses))[:MAX_ADDRESSES]
