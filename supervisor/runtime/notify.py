"""The service manager's notification protocol, sd_notify(3), in the few lines that it takes.

Nothing happens when the daemon is not run by a service manager.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import trio


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1` to the service manager, if there is one."""
    with suppress(OSError), _open_socket() as sock:  # no descriptor is left: no reason to fail
        _send(sock, *assignments)


async def keep_watchdog_fed() -> None:
    """Tell the service manager twice per watchdog period that this event loop still turns."""
    period_usec = os.environ.get("WATCHDOG_USEC")
    if not period_usec or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    # One for all times: a daemon that is out of descriptors is not stuck.
    with _open_socket() as sock:
        while True:
            _send(sock, "WATCHDOG=1")
            await trio.sleep(int(period_usec) / 2_000_000)


def _open_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _send(sock: socket.socket, *assignments: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError):  # a manager that has gone away is no reason to fail
        sock.sendto("\n".join(assignments).encode(), address)
