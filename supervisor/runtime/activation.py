"""Sockets that the service manager has opened and hands over, sd_listen_fds(3).

With them there is no moment in which nobody listens: clients that come while the daemon restarts
wait in the socket's queue.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

from supervisor.errors import ConfigError

FIRST_FD = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True)
class PassedSockets:
    """Sockets that listen already; whoever serves them closes them."""

    tcp: tuple[socket.socket, ...] = ()
    unix: tuple[socket.socket, ...] = ()


NONE_PASSED = PassedSockets()


def take_sockets(environ: MutableMapping[str, str] = os.environ) -> PassedSockets:
    """Return the sockets that this process was handed; a second call finds none.

    Raises ConfigError if one of them is nothing that the API can be served on.
    """
    pid, count, _ = (environ.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return NONE_PASSED
    sockets = [_take(fd) for fd in range(FIRST_FD, FIRST_FD + int(count))]
    return PassedSockets(
        tcp=tuple(sock for sock in sockets if sock.family != socket.AF_UNIX),
        unix=tuple(sock for sock in sockets if sock.family == socket.AF_UNIX),
    )


def _take(fd: int) -> socket.socket:
    """Own a descriptor, and keep it from children. Raises ConfigError."""
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as exc:
        raise ConfigError(f"descriptor {fd} of the service manager is no socket: {exc}") from exc
    families = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
    if not listens or sock.family not in families or sock.type != socket.SOCK_STREAM:
        raise ConfigError(
            f"descriptor {fd} of the service manager is no stream socket that listens on TCP or a"
            " UNIX path; use ListenStream= in the socket unit"
        )
    return sock
