"""Which addresses are this host's own, by asking the kernel how it would route them.

A list of the interfaces' addresses would miss whole networks that are routed to the host (`ip route
add local …`), and a trial `bind` lies where `ip_nonlocal_bind` is set. The route is what a
connection would take. One netlink request, answered at once and without privileges.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address

from supervisor.egress.addresses import AddressRule, IPAddress, IPNetwork, address_rule
from supervisor.errors import ConfigError

_MESSAGE_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=8BI")
_ATTRIBUTE = struct.Struct("=HH")
_GET_ROUTE, _NEW_ROUTE = 26, 24
_IS_REQUEST = 1
_TO = 1
_LOCAL, _BROADCAST, _ANYCAST = 2, 3, 4
_OWN_TYPES = frozenset({_LOCAL, _BROADCAST, _ANYCAST})


def host_address_rule(allowed_networks: Iterable[IPNetwork]) -> AddressRule:
    """Return the rule of this host. Raises ConfigError if its routes cannot be asked for."""
    try:
        is_checked = _ask(IPv4Address("127.0.0.1")) == _LOCAL
    except OSError:
        is_checked = False
    if not is_checked:
        raise ConfigError(
            "the kernel does not tell the daemon its routes, so a build's egress cannot be kept off"
            " this host; allow AF_NETLINK (RestrictAddressFamilies= of the unit)"
        )
    return address_rule(allowed_networks, is_own_address)


def is_own_address(address: IPAddress) -> bool:
    """Say whether a packet to `address` would end on this host, or at all of its neighbours."""
    try:
        return _ask(address) in _OWN_TYPES
    except OSError:  # out of descriptors, say: what cannot be checked is not opened
        return True


def _ask(address: IPAddress) -> int:
    """Return the type (RTN_*) of the route to `address`; 0 if there is none. Raises OSError."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    packed = address.packed
    request = (
        _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
        + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _TO)
        + packed
    )
    length = _MESSAGE_HEADER.size + len(request)
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE) as netlink:
        netlink.send(_MESSAGE_HEADER.pack(length, _GET_ROUTE, _IS_REQUEST, 1, 0) + request)
        answer = netlink.recv(8192)
    _, message_type, _, _, _ = _MESSAGE_HEADER.unpack_from(answer)
    if message_type != _NEW_ROUTE:
        return 0
    route_type: int = _ROUTE.unpack_from(answer, _MESSAGE_HEADER.size)[7]
    return route_type
