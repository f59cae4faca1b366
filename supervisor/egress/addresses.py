"""Which addresses a build may reach: public ones, and what the operator lists. Pure.

The tables follow IANA's registries of special-purpose addresses. They are ours, not
`ipaddress.is_global`, whose answers change between Python's releases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
AddressRule = Callable[[IPAddress], str | None]
"""Says what kind of address it is if it is refused ("a private address"), else None."""

_UNUSABLE: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "an unspecified address"),  # Linux connects 0.0.0.0 to the host itself
    ("224.0.0.0/4", "a multicast address"),
    ("255.255.255.255/32", "a broadcast address"),
    ("::/128", "an unspecified address"),
    ("ff00::/8", "a multicast address"),
)
"""Never the address of a server; not even the operator can list them."""

_METADATA: tuple[tuple[str, str], ...] = (
    ("169.254.169.254/32", "a metadata address"),
    ("169.254.170.2/32", "a metadata address"),
    ("100.100.100.200/32", "a metadata address"),
    ("168.63.129.16/32", "a metadata address"),  # a public number, answered by the cloud's host
    ("192.0.0.192/32", "a metadata address"),
    ("fd00:ec2::/32", "a metadata address"),
    ("fd20:ce::/32", "a metadata address"),
)
"""Where clouds hand credentials to whoever asks from the host."""

_SPECIAL: tuple[tuple[str, str], ...] = (
    ("10.0.0.0/8", "a private address"),
    ("100.64.0.0/10", "a carrier's shared address"),
    ("127.0.0.0/8", "a loopback address"),
    ("169.254.0.0/16", "a link-local address"),
    ("172.16.0.0/12", "a private address"),
    ("192.0.0.0/24", "a reserved address"),
    ("192.0.2.0/24", "a reserved address"),
    ("192.88.99.0/24", "a reserved address"),
    ("192.168.0.0/16", "a private address"),
    ("198.18.0.0/15", "a reserved address"),
    ("198.51.100.0/24", "a reserved address"),
    ("203.0.113.0/24", "a reserved address"),
    ("240.0.0.0/4", "a reserved address"),
    ("::1/128", "a loopback address"),
    ("fc00::/7", "a private address"),
    ("fe80::/10", "a link-local address"),
    ("fec0::/10", "a private address"),
    ("2001::/23", "a reserved address"),
    ("2001:db8::/32", "a reserved address"),
    ("3fff::/20", "a reserved address"),
)

_GLOBAL_UNICAST_6 = IPv6Network("2000::/3")
"""All that IANA gives out. What is outside of it and named nowhere above is reserved as well."""

_COMPATIBLE = IPv6Network("::/96")
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})
"""In front of the IPv4 address, under any prefix (RFC 5214, 6.1)."""

_Table = tuple[tuple[IPNetwork, str], ...]


def _compile(table: Iterable[tuple[str, str]]) -> _Table:
    return tuple((ip_network(network), kind) for network, kind in table)


_UNUSABLE_NETWORKS = _compile(_UNUSABLE)
_METADATA_NETWORKS = _compile(_METADATA)
_SPECIAL_NETWORKS = _compile(_SPECIAL)


def address_rule(
    allowed_networks: Iterable[IPNetwork] = (), is_own: Callable[[IPAddress], bool] | None = None
) -> AddressRule:
    """Return the rule of a host: public addresses, and those in `allowed_networks`.

    1. An address that no server can have is refused, whatever is listed.
    2. An IPv4 address written inside an IPv6 one (mapped, NAT64, 6to4, Teredo …) is refused, unless
       the IPv6 network is listed *and* the IPv4 address is allowed by itself.
    3. An address of this host (`is_own`) or of a metadata service is refused, unless it is listed
       alone (/32, /128): a list of whole networks is never meant to open these.
    4. Any other address is allowed if it is public or in a listed network.
    """
    networks = tuple(allowed_networks)

    def why_refused(address: IPAddress) -> str | None:
        if kind := _find(_UNUSABLE_NETWORKS, address):
            return kind
        is_listed = any(address in network for network in networks)
        inner = embedded_ipv4(address)
        if inner is not None:
            return why_refused(inner) if is_listed else "an IPv4 address inside an IPv6 address"
        is_listed_alone = any(
            network.num_addresses == 1 and address in network for network in networks
        )
        if not is_listed_alone:
            if kind := _find(_METADATA_NETWORKS, address):
                return kind
            if is_own is not None and is_own(address):
                return "an address of this host"
        return None if is_listed else _why_not_public(address)

    return why_refused


def embedded_ipv4(address: IPAddress) -> IPv4Address | None:
    """Return the IPv4 address that a transition mechanism would take out of an IPv6 one."""
    if isinstance(address, IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    is_compatible = address in _COMPATIBLE and int(address) > 1  # not :: and not ::1
    is_isatap = int(address) >> 32 & 0xFFFFFFFF in _ISATAP
    if is_compatible or is_isatap or address in _TRANSLATED or address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _why_not_public(address: IPAddress) -> str | None:
    if kind := _find(_SPECIAL_NETWORKS, address):
        return kind
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST_6:
        return "a reserved address"
    return None


def _find(table: _Table, address: IPAddress) -> str | None:
    for network, kind in table:
        if address in network:
            return kind
    return None
