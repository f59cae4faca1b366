"""The first words to the supervisor, said before anything heavy is imported.

Under software emulation importing trio takes two seconds, as long as the kernel's boot, and the
supervisor would like to know sooner that the machine lives. So the `hello` is made here by hand, of
few kinds of CBOR; the tests hold it against the real decoder. Only what is nearly free may be
imported: the C module below `socket` costs 4 ms there, `socket` itself 220, `typing` 170.
"""

from __future__ import annotations

import _socket
import os
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VERSIONS = "/usr/lib/hypeman/versions"
"""Lines `name version`, written when the image is made: asking BuildKit would take a second."""
CONTROL_PORT = 5001
PROTOCOL_VERSION = 1
AGENT_VERSION = "0.1.0"
_BACKLOG = 4


def listen() -> _socket.socket:
    """Listen for the supervisor: from here on its attempts to connect succeed."""
    listener = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM)
    listener.bind((_socket.VMADDR_CID_ANY, CONTROL_PORT))
    listener.listen(_BACKLOG)
    return listener


def greet(
    listener: _socket.socket, timeline: Mapping[str, float], seconds: float
) -> _socket.socket | None:
    """Return the first connection of the supervisor, greeted, if it comes within `seconds`."""
    listener.settimeout(seconds)
    try:
        fd, _ = listener._accept()  # type: ignore[attr-defined]  # as socket.py does
        connection = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM, 0, fd)
        connection.settimeout(seconds)
        connection.sendall(frame(hello_fields({**timeline, "hello": uptime()})))
    except OSError:  # nobody there, or gone again
        return None
    return connection


def uptime() -> float:
    """Return the seconds since the kernel started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def process_start() -> float:
    """Return when this process was started, in seconds since the kernel was."""
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 - pathlib is not free
        # Behind the name, which is in parentheses and may hold anything; field 22 of proc(5).
        return int(file.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def read_versions(path: str = VERSIONS) -> dict[str, str]:
    """Return the versions that the image was made with, by name; empty if it does not say."""
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib is not free
            lines = [line.split(None, 1) for line in file]
    except OSError:
        return {}
    return {line[0]: line[1].strip() for line in lines if len(line) == 2}


def toolchain(versions: Mapping[str, str]) -> str:
    """Return what a build runs on beside BuildKit: the agent, the kernel, and the image's programs.

    What compiles a user's code is in the base images; their digests say which it was.
    """
    parts = {"agent": AGENT_VERSION, "kernel": os.uname().release, **versions}
    return ", ".join(f"{name} {parts[name]}" for name in sorted(parts) if name != "buildkit")


def hello_fields(timeline: Mapping[str, float]) -> dict[str, Any]:
    """Return the fields of `wire.Hello`."""
    versions = read_versions()
    return {
        "protocol": PROTOCOL_VERSION,
        "agent": AGENT_VERSION,
        "buildkit": versions.get("buildkit", ""),
        "toolchain": toolchain(versions),
        "timeline": timeline,
    }


def frame(fields: Mapping[str, Any]) -> bytes:
    """Return `fields` as the frame of a `hello`."""
    body = _encode({"type": "hello", **fields})
    return len(body).to_bytes(4, "big") + body


def _encode(value: Any) -> bytes:
    if isinstance(value, str):
        data = value.encode()
        return _head(3, len(data)) + data
    if isinstance(value, float):
        return b"\xfb" + struct.pack(">d", value)
    if isinstance(value, int):
        return _head(0, value)
    pairs = (_encode(name) + _encode(item) for name, item in value.items())
    return _head(5, len(value)) + b"".join(pairs)


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    return bytes([major << 5 | 25]) + argument.to_bytes(2, "big")
