"""Which server a TLS client asks for: the name in its hello, which is not encrypted. Pure.

One address can answer for many names (a CDN), and a tunnel to an allowed name ends at whichever the
client names in its hello. So the hello is read, as strictly as targets are: what two servers could
read differently is no hello. RFC 8446, 4.1.2 and 5.1; RFC 6066, 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

MAX_HELLO_BYTES = 16 << 10
"""With keys against quantum computers and a session ticket, hellos have 2 to 4 KiB."""
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_RECORD_HEADER_BYTES = 5
_MAX_RECORD_BYTES = 16 << 10
_MAX_RECORDS = 16
"""A hello may be cut into records. Clients use one, and each look at a thousand costs time."""
_SERVER_NAME, _HOST_NAME = 0, 0
_SERVER_HELLO = 2
_RETRY = sha256(b"HelloRetryRequest").digest()
"""Stands for the random number of a ServerHello that asks for another ClientHello."""
_RETRY_AT = _RECORD_HEADER_BYTES + 4 + 2
_CIPHER_CHANGE = b"\x14\x03\x03\x00\x01\x01"
_ENCRYPTED = frozenset({0xFE0D, 0xFFCE})
"""Extensions that hide a second name from everybody but the server (ECH, RFC 9849, and its draft
ESNI): the name in the open is for show then. Browsers send an empty one; no tool of builds does.
"""


class NoHello(ValueError):
    """The bytes are no ClientHello; the text is a reason, without a capital or a stop."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a client says first."""

    server_name: str | None
    """As it was written, in printable ASCII; None if it names no server."""
    length: int
    """Of the records that it came in, in bytes."""


def read_client_hello(data: bytes) -> ClientHello | None:
    """Return the hello that `data` begins with, or None if more of it has to come.

    Raises NoHello.
    """
    message = bytearray()
    at = 0
    for _ in range(_MAX_RECORDS):
        header = data[at : at + _RECORD_HEADER_BYTES]
        if header[:1] not in (b"", bytes([_HANDSHAKE])) or header[1:2] not in (b"", b"\x03"):
            raise NoHello("it does not begin as TLS")
        if len(header) < _RECORD_HEADER_BYTES:
            return None
        length = int.from_bytes(header[3:], "big")
        if not 0 < length <= _MAX_RECORD_BYTES:
            raise NoHello("its TLS record has no possible length")
        at += _RECORD_HEADER_BYTES
        message += data[at : at + length]
        at += length
        if message[:1] not in (b"", bytes([_CLIENT_HELLO])):
            raise NoHello("its first TLS message is no client hello")
        if len(message) >= 4:
            end = 4 + int.from_bytes(message[1:4], "big")
            if end > MAX_HELLO_BYTES:
                raise NoHello(f"its TLS hello is longer than {MAX_HELLO_BYTES} bytes")
            if len(message) > end:
                raise NoHello("its TLS hello has something else behind it in its record")
            if len(message) == end:
                return ClientHello(_server_name(_Reader(bytes(message[4:]))), at)
        if at > len(data):
            return None
    raise NoHello("its TLS hello comes in too many pieces")


def is_retry_request(data: bytes) -> bool | None:
    """Say whether a server, whose first bytes these are, wants another hello; None if more of them
    have to come to tell.
    """
    wanted = _RETRY_AT + len(_RETRY)
    if data[:1] not in (b"", bytes([_HANDSHAKE])) or len(data) >= wanted:
        return data[_RETRY_AT:wanted] == _RETRY and data[5] == _SERVER_HELLO
    return None


def skip_cipher_changes(data: bytes) -> int:
    """Return where the records end that mean nothing and may stand before a second hello."""
    at = 0
    while data.startswith(_CIPHER_CHANGE, at) and at < 4 * len(_CIPHER_CHANGE):
        at += len(_CIPHER_CHANGE)
    return at


def _server_name(hello: _Reader) -> str | None:
    hello.take(2 + 32)  # version and random
    hello.vector(1)  # session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    if hello.is_at_end():
        return None
    extensions = _Reader(hello.vector(2))
    names: list[bytes] = []
    while not extensions.is_at_end():
        kind, body = extensions.number(2), extensions.vector(2)
        if kind in _ENCRYPTED:
            raise NoHello("its TLS hello hides the server's name (encrypted_client_hello)")
        if kind == _SERVER_NAME:
            listed = _Reader(_Reader(body).vector(2, is_all=True))
            if listed.number(1) != _HOST_NAME:
                raise NoHello("its TLS hello names a server by something else than a host name")
            names.append(listed.vector(2, is_all=True))
    if not hello.is_at_end() or len(names) > 1:
        raise NoHello("its TLS hello can be read in two ways")
    if not names:
        return None
    try:
        name = names[0].decode("ascii")
    except UnicodeDecodeError:
        name = ""
    if not name or not name.isprintable():
        raise NoHello("the server name in its TLS hello is no name")
    return name


class _Reader:
    """Takes a message apart from its beginning."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def is_at_end(self) -> bool:
        """Say whether nothing is left."""
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes. Raises NoHello if there are fewer."""
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise NoHello("its TLS hello ends inside a field")
        self._at += count
        return taken

    def number(self, width: int) -> int:
        """Return the next number."""
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int, *, is_all: bool = False) -> bytes:
        """Return the next field that has its length, of `width` bytes, before it."""
        taken = self.take(self.number(width))
        if is_all and not self.is_at_end():
            raise NoHello("its TLS hello can be read in two ways")
        return taken
