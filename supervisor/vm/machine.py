"""What a hypervisor driver must be able to do, as Protocols.

A driver *runs* a machine: `run_machine` is a task that lasts as long as the machine does. Its
nursery is the owner; cancelling it is how a machine is destroyed, and when it has returned nothing
is left: no process, no socket, no disk, no directory. So a machine can never outlive its owner.

    async with trio.open_nursery() as nursery:
        machine = await nursery.start(hypervisor.run_machine, spec)
        stream = await machine.connect(5001)
        ...
        nursery.cancel_scope.cancel(reason="attempt over")
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import trio

from supervisor.model.build import ErrorReason
from supervisor.model.ids import MachineId

CONNECT_PAUSE_SECONDS = 0.05
"""Between two tries of `wait_connect`: what a boot may be late by, against work on a busy host."""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """The shape of one machine."""

    id: MachineId
    cpus: int
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a machine's last moments. Each a few KiB at most, safe to show."""

    console: str
    """The last that the guest printed: the guest's own words, and nothing of the host's."""
    host: str = ""
    """The last messages of the host's processes. They may name files of the host."""


@dataclass(frozen=True, slots=True)
class MachineExit:
    """How a VMM ended: a sentence for people, and which kind of end that is."""

    description: str
    reason: ErrorReason


class GuestUnreachable(Exception):
    """Nothing listens on that port of the guest (yet); a new `connect` may succeed."""


class Machine(Protocol):
    """A booted microVM, as its leaseholder sees it."""

    @property
    def id(self) -> MachineId:
        """The machine's id."""
        ...

    async def connect(self, port: int) -> trio.abc.Stream:
        """Return a stream to vsock `port` of the guest. One try.

        Raises GuestUnreachable if nothing listens there (yet), and GuestLost if the machine has
        ended: then no other try can succeed. The caller closes the stream.

        Two things a stream to a guest cannot do, because vsock devices differ (design.md, "Facts").
        There is no half-close: some lose the other direction with it. And nobody may send in bulk
        while the other side does too: with both directions full, some stop for good. Talk in turns,
        or keep one direction small.

        A guest that hangs may never answer; the caller bounds the wait, and cancelling is safe.
        """
        ...

    def listen(self, port: int) -> AbstractAsyncContextManager[trio.abc.Listener[trio.abc.Stream]]:
        """Accept connections that the guest makes to host `port`, while the block lasts."""
        ...

    async def wait_exit(self) -> MachineExit:
        """Wait until the VMM has ended by itself (a power-off, a crash, a kill from outside)."""
        ...

    async def is_answering(self) -> bool:
        """Say whether the VMM itself answers, whatever its guest does. Takes a second at most."""
        ...

    def evidence(self) -> Evidence:
        """Return the last of the console and of the host's processes; also when it has ended."""
        ...


class Hypervisor(Protocol):
    """A driver that boots machines."""

    async def run_machine(
        self, spec: MachineSpec, *, task_status: trio.TaskStatus[Machine] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Boot a machine, hand it out by `task_status.started`, and keep it until cancelled.

        Returns early if the VMM ends by itself (`Machine.wait_exit` tells how). Raises VmBootFailed
        if the VMM cannot be started, ResourceExhausted if the host's disk is too full for it.
        Cancelling at any moment is safe: the VMM is stopped politely for at most the configured
        grace, then killed, and everything of the machine is removed.
        """
        ...

    async def sweep(self) -> int:
        """Remove what machines of an earlier, killed daemon left behind; return how many."""
        ...


async def wait_connect(machine: Machine, port: int) -> trio.abc.Stream:
    """Connect to `port` of the guest as soon as something listens there.

    Bounded by the caller: `with trio.fail_after(boot_timeout)`. Raises GuestLost if the machine
    ends.
    """
    while True:
        try:
            return await machine.connect(port)
        except GuestUnreachable:
            await trio.sleep(CONNECT_PAUSE_SECONDS)
