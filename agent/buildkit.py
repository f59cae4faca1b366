"""The BuildKit daemon of this machine, owned: awaited, watched, and started again if need be.

It starts with the machine, before anybody asks for a build, so that a machine of the pool has it
warm and a cold one overlaps it with everything else. All that it depends on of a build is the list
of mirrors; it starts with the usual ones, and once more if a build wants others.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from agent import rootless
from agent.process import Tail, describe_status, own_child

Mirrors = tuple[str, ...]
Start = Callable[[Sequence[str]], rootless.Started]
"""Starts the daemon with these mirrors. Raises OSError."""


class Daemon:
    """The daemon as its users see it. One task runs it (`run`), one build uses it."""

    def __init__(self, start: Start = rootless.start) -> None:
        self._start = start
        self._mirrors: Mirrors = rootless.DEFAULT_MIRRORS
        self._changed = trio.Event()
        self._scope = trio.CancelScope()
        self._is_ready = False
        self._exit = ""

    @property
    def exit(self) -> str:
        """How it ended by itself, with the last of what it said; empty while it runs."""
        return self._exit

    async def run(self, started: rootless.Started) -> None:
        """Own the daemon until cancelled, or until it ends by itself (`exit` says how).

        `started` has the usual mirrors.
        """
        mirrors: Mirrors = rootless.DEFAULT_MIRRORS
        while True:
            with trio.CancelScope() as self._scope:
                if mirrors != self._mirrors:  # wanted while there was nothing to cancel
                    self._scope.cancel(reason="other mirrors")
                ended = await self._run_once(started, mirrors)
            if not self._scope.cancelled_caught:
                self._set(is_ready=False, exit=ended)
                return
            mirrors = self._mirrors
            try:
                started = self._start(mirrors)
            except OSError as exc:
                self._set(is_ready=False, exit=f"buildkitd could not be started: {exc}")
                return

    async def wait_ready(self, mirrors: Sequence[str]) -> str:
        """Wait until it serves with these mirrors. Returns how it ended if it has, else nothing."""
        if tuple(mirrors) != self._mirrors:
            self._mirrors = tuple(mirrors)
            self._is_ready = False
            self._scope.cancel(reason="other mirrors")
        while not self._is_ready and not self._exit:
            await self._changed.wait()
        return self._exit

    async def _run_once(self, started: rootless.Started, mirrors: Mirrors) -> str:
        """Own one process to its end, and return how it ended."""
        tail = Tail()
        notify = socket.socket(fileno=started.notify)
        with trio.socket.from_stdlib_socket(notify) as ready:
            async with own_child(started.process, tail) as child, trio.open_nursery() as nursery:
                nursery.start_soon(self._await_ready, ready, mirrors)
                status = await child.wait()
                nursery.cancel_scope.cancel(reason="buildkitd has ended")
        return f"buildkitd ended with {describe_status(status)}; it said last: {tail.text}"

    async def _await_ready(self, notify: trio.socket.SocketType, mirrors: Mirrors) -> None:
        while b"READY=1" not in (await notify.recv(4096)).split(b"\n"):
            pass
        if mirrors == self._mirrors:  # else it is about to be stopped
            hide_otel_socket_sync()
            self._set(is_ready=True, exit="")

    def _set(self, *, is_ready: bool, exit: str) -> None:
        self._is_ready = is_ready
        self._exit = exit
        self._changed.set()
        self._changed = trio.Event()


def hide_otel_socket_sync(path: str = rootless.OTEL_SOCKET) -> None:
    """Remove a socket of BuildKit's own, which it would otherwise mount into every step."""
    Path(path).unlink(missing_ok=True)
