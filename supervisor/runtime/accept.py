"""Accepting connections on a host that may run out of what a connection needs."""

from __future__ import annotations

import trio

from supervisor.runtime.capacity import NO_CAPACITY
from supervisor.runtime.logs import log

_PAUSE_SECONDS = 0.1
"""Descriptors come free when connections end."""


async def accept(listener: trio.abc.Listener[trio.abc.Stream]) -> trio.abc.Stream:
    """Return the next connection, waiting while the host has no capacity for one."""
    while True:
        try:
            return await listener.accept()
        except OSError as exc:
            if exc.errno not in NO_CAPACITY:
                raise
            log.bind(why=exc.strerror).error("listener.no_capacity")
        await trio.sleep(_PAUSE_SECONDS)
