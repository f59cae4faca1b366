"""The vsock of one machine, used in the only ways that its device survives.

vhost-device-vsock 0.3 breaks for good when

* a host connects while the VMM is just handing over the guest's memory: the queues are not there
  yet, and the device's thread ends. So nobody connects before the guest is known to be up (`open`);
* a host hangs up between `CONNECT` and `OK`. So a caller that gives up leaves the connection to a
  task of the machine, which waits for the answer and then closes it.

And one connection stops for good when both its directions are full: the device then asks the guest
for credit again and again, and never writes to the host what it holds. So the protocols above talk
in turns.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import outcome
import trio

from supervisor.errors import GuestLost, HostError
from supervisor.model.build import ErrorReason
from supervisor.vm import hybrid
from supervisor.vm.machine import GuestUnreachable

MAX_UNANSWERED = 32
"""Connections that wait for the guest's answer at once. A guest whose kernel runs answers within
milliseconds; one that hangs cannot make the host collect sockets."""


class Vsock:
    """One machine's vsock. `nursery` is the machine's and holds the connections being made."""

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self._path = path
        self._nursery = nursery
        self._is_open = False
        self._lost: GuestLost | None = None
        self._unanswered = 0

    def __repr__(self) -> str:
        state = "lost" if self._lost else "open" if self._is_open else "booting"
        return f"<Vsock {self._path} {state}, {self._unanswered} unanswered>"

    def open(self) -> None:
        """Let connections through: the guest's driver has set up the device."""
        self._is_open = True

    def close(self, why: str, reason: ErrorReason) -> None:
        """Refuse everything from now on: the machine has ended."""
        self._lost = self._lost or GuestLost(why, reason=reason)

    async def connect(self, port: int) -> trio.abc.Stream:
        """Return a stream to `port` of the guest; see `Machine.connect`."""
        if self._lost is None and self._is_open and self._unanswered < MAX_UNANSWERED:
            call = _Call()
            self._nursery.start_soon(self._dial, port, call)
            return await call.wait()
        await trio.lowlevel.checkpoint()
        if self._lost is not None:
            raise self._as_lost()
        if not self._is_open:
            raise GuestUnreachable("the guest has not booted yet")
        raise GuestUnreachable(f"the guest has left {MAX_UNANSWERED} connections unanswered")

    @asynccontextmanager
    async def listen(self, port: int) -> AsyncIterator[trio.abc.Listener[trio.abc.Stream]]:
        """Accept the guest's connections to host `port` while the block lasts. Raises HostError."""
        path = self._path.with_name(f"{self._path.name}_{port}")
        try:
            listener = hybrid.listen_sync(path)
        except OSError as exc:
            raise HostError(f"port {port} cannot be opened to the guest: {exc.strerror}") from exc
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)
            await trio.aclose_forcefully(listener)

    async def _dial(self, port: int, call: _Call) -> None:
        self._unanswered += 1
        try:
            call.settle(outcome.Value(await hybrid.dial(self._path, port)))
        except GuestUnreachable as exc:
            call.settle(outcome.Error(exc))
        finally:
            self._unanswered -= 1
            call.settle(outcome.Error(self._as_lost()))

    def _as_lost(self) -> GuestLost:
        """Return an error of the caller's own, with a traceback of its own."""
        if self._lost is None:
            return GuestLost("the machine was stopped", reason=ErrorReason.VMM_EXITED)
        return GuestLost(self._lost.message, reason=self._lost.reason)


class _Call:
    """A caller that waits for a connection, or does so no more."""

    def __init__(self) -> None:
        self._result: outcome.Outcome[hybrid.HybridStream] | None = None
        self._settled = trio.Event()
        self._given_up = False

    def settle(self, result: outcome.Outcome[hybrid.HybridStream]) -> None:
        """Hand over the result; the first one counts."""
        if self._result is None:
            self._result = result
            self._settled.set()
            self._drop_unwanted()

    async def wait(self) -> hybrid.HybridStream:
        try:
            await self._settled.wait()
        except trio.Cancelled:
            # The result may have come in the same moment, too late to be handed out.
            self._given_up = True
            self._drop_unwanted()
            raise
        assert self._result is not None
        return self._result.unwrap()

    def _drop_unwanted(self) -> None:
        if self._given_up and isinstance(self._result, outcome.Value):
            self._result.value.close_nowait()
