"""Children of the agent, owned by blocks: whatever way a block ends, its child and all that it has
started are killed and reaped before it returns. There is no politeness: the machine ends with the
build, and nothing of it is kept.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from agent.spawn import Spawned, spawn

Sink = Callable[[bytes], Awaitable[None] | None]
"""Takes what a child wrote; returns an awaitable if that may take time."""

_CHUNK_BYTES = 64 << 10
_REAP_SECONDS = 2
"""A killed child that is not gone by then hangs in the kernel; the power-off will take it."""


class Tail:
    """A sink that keeps the end of what it gets."""

    def __init__(self, limit_bytes: int = 8 << 10) -> None:
        self._data = bytearray()
        self._limit_bytes = limit_bytes

    def __call__(self, data: bytes) -> None:
        self._data += data
        del self._data[: -self._limit_bytes]

    @property
    def text(self) -> str:
        """What is kept, as text."""
        return self._data.decode(errors="replace").strip()


class Child:
    """A running child."""

    def __init__(self, spawned: Spawned) -> None:
        self.pid = spawned.pid
        self.stderr = trio.lowlevel.FdStream(spawned.stderr)
        self.stdin = trio.lowlevel.FdStream(spawned.stdin) if spawned.stdin >= 0 else None
        self._pidfd = os.pidfd_open(spawned.pid)
        self._status: int | None = None

    async def wait(self) -> int:
        """Wait until it has ended, and return its exit status (negative: minus the signal)."""
        if self._status is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        if self._status is None:
            # The descriptor says that it has ended, so this returns at once.
            _, status = os.waitpid(self.pid, 0)  # noqa: ASYNC222
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def kill_group(self) -> None:
        """Kill it, and everything that it started and that has not left its session."""
        with contextlib.suppress(ProcessLookupError):  # all gone already
            os.killpg(self.pid, signal.SIGKILL)

    async def aclose(self) -> None:
        """Kill, reap and forget it."""
        self.kill_group()
        with trio.move_on_after(_REAP_SECONDS, shield=True):
            await self.wait()
        with trio.CancelScope(shield=True):  # closing a pipe takes no time
            await self.stderr.aclose()
            if self.stdin is not None:
                await self.stdin.aclose()
        os.close(self._pidfd)


@asynccontextmanager
async def own_child(spawned: Spawned, sink: Sink) -> AsyncIterator[Child]:
    """Own a child while the block lasts; its standard error goes to `sink`.

    At the end of the block, however it ends, the child and its group are gone. When the block is
    left in peace, everything that was written has reached `sink` before. What the block raises
    comes out in a group: keep expected errors inside.
    """
    child = Child(spawned)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pump, child.stderr, sink)
            yield child
            # What has inherited the pipe would keep it open; nothing of the group may outlive this.
            child.kill_group()
    finally:
        await child.aclose()


async def run_child(argv: Sequence[str], sink: Sink, env: Mapping[str, str], user: int) -> int:
    """Run `argv` to its end and return its exit status. Raises OSError if it cannot be started."""
    async with own_child(spawn(argv, env, user=user), sink) as child:
        return await child.wait()


def describe_status(status: int) -> str:
    """Return an exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


async def _pump(stream: trio.abc.ReceiveStream, sink: Sink) -> None:
    while data := await stream.receive_some(_CHUNK_BYTES):
        waiting = sink(bytes(data))
        if waiting is not None:
            await waiting
