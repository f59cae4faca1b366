"""The service manager's notification protocol, sd_notify(3), in the few lines that it takes.

Nothing happens when the daemon is not run by a service manager.
"""

from __future__ import annotations

import os
import socket

import trio


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1` to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto("\n".join(assignments).encode(), address)
        except OSError:
            return  # a manager that has gone away is no reason to fail


async def keep_watchdog_fed() -> None:
    """Tell the service manager twice per watchdog period that this event loop still turns."""
    period_usec = os.environ.get("WATCHDOG_USEC")
    if not period_usec or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        notify("WATCHDOG=1")
        await trio.sleep(int(period_usec) / 2_000_000)
