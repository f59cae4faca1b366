"""What a guest asks for, read strictly: hosts in their one plain spelling, and nothing else. Pure.

A name that a resolver, a URL library and a person could read in three ways is how filters are
fooled. So instead of understanding every spelling, everything but the plain one is refused: user
information, percent-encoding, zone ids, decimal, octal, hexadecimal and short IPv4 addresses.
Upper case and one trailing dot are harmless and are taken away.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from supervisor.egress.addresses import IPAddress

MAX_NAME_CHARS = 253
HTTP_PORT = 80

_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]*))?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ABSOLUTE = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>.*)")


class BadTarget(ValueError):
    """The target is refused as it is written; the text is a reason, without a capital or a stop."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a request wants to go."""

    host: str | IPAddress
    """A name in lower case without a trailing dot, or an address."""
    port: int

    @property
    def name(self) -> str:
        """The host as text, without brackets."""
        return str(self.host)

    @property
    def authority(self) -> str:
        """The host as a `Host` header has it, without a port."""
        return f"[{self.host}]" if isinstance(self.host, IPv6Address) else str(self.host)

    def __str__(self) -> str:
        return f"{self.authority}:{self.port}"


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """An absolute-form target, taken apart."""

    destination: Destination
    path: str
    """Path and query, as the server is asked for them."""

    @property
    def host_header(self) -> str:
        """The `Host` of the request: it is made from the target, so the two cannot differ."""
        port = self.destination.port
        return self.destination.authority if port == HTTP_PORT else str(self.destination)


def parse_connect_target(target: str) -> Destination:
    """Read the `host:port` of a CONNECT request. Raises BadTarget."""
    return _parse_authority(target, default_port=None)


def parse_absolute_target(target: str) -> HttpTarget:
    """Read the `http://host[:port]/path` of any other request. Raises BadTarget."""
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise BadTarget("a proxy is asked for http://host/path, or with CONNECT")
    if match["scheme"].lower() != "http":
        raise BadTarget("only http:// is forwarded; https:// needs CONNECT")
    destination = _parse_authority(match["authority"], default_port=HTTP_PORT)
    path = match["rest"]
    if "#" in path:
        raise BadTarget("a request target has no fragment")
    return HttpTarget(destination, path if path.startswith("/") else f"/{path}")


def parse_domain(text: str) -> str:
    """Return an entry of `allowed_domains` in its normal form, which `matches` compares.

    An entry is a name, `*.` and a name, or an address. Raises BadTarget.
    """
    if text.startswith("*."):
        host = _parse_host(text[2:])
        if not isinstance(host, str):
            raise BadTarget("an address has no subdomains")
        return f"*.{host}"
    if ":" in text and not text.startswith("["):
        text = f"[{text}]"  # people write an IPv6 address without brackets in a list
    return str(_parse_host(text))


def matches(entry: str, destination: Destination) -> bool:
    """Say whether a normal form allows a host.

    `*.example.org` stands for the names below example.org at any depth, not for example.org itself.
    An address is allowed only by the entry that is this address.
    """
    if entry.startswith("*."):
        return isinstance(destination.host, str) and destination.host.endswith(entry[1:])
    return entry == destination.name


def _parse_authority(text: str, default_port: int | None) -> Destination:
    if "@" in text:
        raise BadTarget("user information in front of the host is refused")
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise BadTarget("this is not host:port; an IPv6 address needs brackets")
    host, port = _parse_host(match["host"]), match["port"]
    if not port and default_port is not None:
        return Destination(host, default_port)
    if not port or not _PORT.fullmatch(port) or int(port) > 65535:
        raise BadTarget("the port must be a number from 1 to 65535")
    return Destination(host, int(port))


def _parse_host(text: str) -> str | IPAddress:
    """Return the host in its normal form. Raises BadTarget."""
    if not text.isascii():
        raise BadTarget("a name with other letters than ASCII must be in its xn-- form")
    if "%" in text:
        raise BadTarget("percent-encoding and zone ids in the host are refused")
    if text.startswith("[") and text.endswith("]"):
        return _parse_ipv6(text[1:-1])
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # Whatever ends in a number is an address to some resolver (`127.1`, `0x7f.0.0.1`).
        return _parse_ipv4(name)
    if len(name) > MAX_NAME_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadTarget("this is not the name of a host")
    return name


def _parse_ipv4(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise BadTarget("an IPv4 address is four decimal numbers without leading zeros") from None


def _parse_ipv6(text: str) -> IPv6Address:
    try:
        return IPv6Address(text)
    except AddressValueError:
        raise BadTarget("what stands in the brackets is not an IPv6 address") from None
