"""Blocking work goes to threads, with one limiter for each kind of work.

A limiter of its own keeps one kind from starving another, and keeps trio's default limiter free for
what needs it quickly (process spawning).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Threads:
    """The limiters of one daemon; made inside trio, since a limiter belongs to a run."""

    def __init__(self) -> None:
        self.disk = trio.CapacityLimiter(8)
        """Reading and writing files: uploads, logs, scratch disks."""
        self.hashing = trio.CapacityLimiter(4)
        """Hashing and inspecting large files."""
        self.names = trio.CapacityLimiter(16)
        """Resolving names for builds, which may hang for as long as a name server likes."""
        self.mirror_names = trio.CapacityLimiter(8)
        """Resolving the names that upstreams of the mirror give, which is their choice alone."""
        self.blobs = trio.CapacityLimiter(16)
        """Moving the registry's bytes: short pieces of many transfers at once."""
        self.sync = trio.CapacityLimiter(8)
        """Waiting for the disk to hold a blob: can take seconds and must hold up nothing else."""


async def run_in_thread(limiter: trio.CapacityLimiter, fn: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run `fn(*args)` in a thread under `limiter` and return its result.

    Cancellation waits for the thread: the work is done or not done, never half known.
    """
    return await trio.to_thread.run_sync(fn, *args, limiter=limiter)
