"""A hypervisor whose guests are async functions: the same Protocols, no processes, no files.

    async def guest(guest: FakeGuest) -> None:
        async with guest.listen(5001) as listener:
            stream = await listener.accept()
            ...
        await guest.power_off()

    hypervisor = FakeHypervisor(guest, boot_delay=3)

tests/contract/test_hypervisor.py runs on this and on the real driver, so it may be believed.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio
import trio.testing

from supervisor.errors import GuestLost, VmBootFailed
from supervisor.model.build import ErrorReason
from supervisor.model.ids import MachineId
from supervisor.vm.machine import Evidence, GuestUnreachable, Machine, MachineExit, MachineSpec


class _Listener(trio.abc.Listener[trio.abc.Stream]):
    """Hands out what the other side of the fake link connects."""

    def __init__(self) -> None:
        # As long as the backlog of a real listener.
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](64)

    def offer(self, stream: trio.abc.Stream) -> None:
        self._send.send_nowait(stream)

    async def accept(self) -> trio.abc.Stream:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel as exc:
            raise trio.ClosedResourceError from exc

    async def aclose(self) -> None:
        self._send.close()
        self._receive.close()
        await trio.lowlevel.checkpoint()


class _Link:
    """The vsock of one machine: the listeners of both sides, the guest's ends of all streams."""

    def __init__(self) -> None:
        self.guest_ports: dict[int, _Listener] = {}
        self.host_ports: dict[int, _Listener] = {}
        self._guest_ends: list[trio.abc.Stream] = []

    @asynccontextmanager
    async def listen(
        self, ports: dict[int, _Listener], port: int
    ) -> AsyncIterator[trio.abc.Listener[trio.abc.Stream]]:
        assert port not in ports, f"port {port} is listened on already"
        listener = ports[port] = _Listener()
        try:
            yield listener
        finally:
            del ports[port]
            await trio.aclose_forcefully(listener)

    def connect(self, ports: dict[int, _Listener], port: int) -> trio.abc.Stream | None:
        listener = ports.get(port)
        if listener is None:
            return None
        near, far = trio.testing.memory_stream_pair()
        self._guest_ends.append(far if ports is self.guest_ports else near)
        listener.offer(far)
        return near

    async def cut(self) -> None:
        """End every connection, as the end of the guest does; the host closes its own ends."""
        for stream in self._guest_ends:
            await trio.aclose_forcefully(stream)


class FakeGuest:
    """What the code in a fake guest can do."""

    def __init__(self, spec: MachineSpec, link: _Link) -> None:
        self.spec = spec
        self._link = link
        self.ended = trio.Event()
        self.end = ""
        """How it ended by itself, in the words of `MachineExit`."""
        self.console = ""

    def listen(self, port: int) -> AbstractAsyncContextManager[trio.abc.Listener[trio.abc.Stream]]:
        """Accept connections that the host makes to `port`, while the block lasts."""
        return self._link.listen(self._link.guest_ports, port)

    async def connect(self, port: int) -> trio.abc.Stream:
        """Connect to `port` of the host.

        Raises TimeoutError if nobody listens there: the real device says nothing in that case.
        """
        await trio.lowlevel.checkpoint()
        stream = self._link.connect(self._link.host_ports, port)
        if stream is None:
            raise TimeoutError(f"nothing listens on port {port} of the host")
        return stream

    def print(self, text: str) -> None:
        """Print on the console."""
        self.console += text

    async def power_off(self) -> None:
        """End the machine from inside. Does not return."""
        await self._end("the guest powered off")

    async def panic(self) -> None:
        """End the machine as a crash of its kernel does. Does not return."""
        await self._end("the guest's kernel panicked, or the guest restarted")

    async def _end(self, description: str) -> None:
        self.end = description
        self.ended.set()
        await trio.sleep_forever()


Guest = Callable[[FakeGuest], Awaitable[None]]


async def idle_guest(guest: FakeGuest) -> None:
    """Boot, and do nothing."""
    await trio.sleep_forever()


class FakeMachine:
    """A running fake machine."""

    def __init__(self, spec: MachineSpec, guest: FakeGuest, link: _Link, *, answers: bool) -> None:
        self.spec = spec
        self.guest = guest
        self._link = link
        self._answers = answers
        self._exit: MachineExit | None = None
        self._ended = trio.Event()
        self._killed = trio.Event()
        self.is_paused = False
        """The VMM does not answer, as one that got SIGSTOP; what its guest does is the guest's."""

    @property
    def id(self) -> MachineId:
        return self.spec.id

    async def connect(self, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if self._exit is not None:
            raise GuestLost(self._exit.description, reason=self._exit.reason)
        stream = self._link.connect(self._link.guest_ports, port) if self._answers else None
        if stream is None:
            raise GuestUnreachable(f"nothing listens on port {port} of the guest")
        return stream

    def listen(self, port: int) -> AbstractAsyncContextManager[trio.abc.Listener[trio.abc.Stream]]:
        return self._link.listen(self._link.host_ports, port)

    async def wait_exit(self) -> MachineExit:
        await self._ended.wait()
        assert self._exit is not None
        return self._exit

    async def is_answering(self) -> bool:
        await trio.lowlevel.checkpoint()
        return self._exit is None and not self.is_paused

    def evidence(self) -> Evidence:
        return Evidence(f"[console]\n{self.guest.console}", "[VMM]\na fake VMM")

    def kill(self) -> None:
        """End the VMM from outside, as `kill -9` would."""
        self._killed.set()

    async def run(self, code: Guest, dies_after: float) -> None:
        """Run the guest until it powers off, is killed, or dies; then cut every connection."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait_ended, nursery.cancel_scope)
                nursery.start_soon(self._wait_killed, nursery.cancel_scope)
                nursery.start_soon(self._run_guest, code, nursery.cancel_scope)
                await trio.sleep(dies_after)
                self._end("the VMM ended: killed by SIGKILL")
                nursery.cancel_scope.cancel(reason="the fake machine dies")
        finally:
            self._end("the machine was stopped")
            with trio.CancelScope(shield=True):  # memory streams close at once
                await self._link.cut()

    def _end(self, description: str, reason: ErrorReason = ErrorReason.VMM_EXITED) -> None:
        if self._exit is None:
            self._exit = MachineExit(description, reason)
            self._ended.set()

    async def _wait_ended(self, scope: trio.CancelScope) -> None:
        await self.guest.ended.wait()
        self._end(self.guest.end, ErrorReason.GUEST_STOPPED)
        scope.cancel(reason="the fake guest ended")

    async def _wait_killed(self, scope: trio.CancelScope) -> None:
        await self._killed.wait()
        self._end("the VMM ended: killed by SIGKILL")
        scope.cancel(reason="the fake machine was killed")

    async def _run_guest(self, code: Guest, scope: trio.CancelScope) -> None:
        try:
            await code(self.guest)
        except* trio.BrokenResourceError:
            pass  # the host hung up: the agent ends, and with it the guest
        self._end("the guest powered off", ErrorReason.GUEST_STOPPED)
        scope.cancel(reason="the fake guest's code ended")


class FakeHypervisor:
    """Boots fake machines.

    `boot_delay`     seconds until a machine is handed out
    `fails_to_boot`  how many of the next boots raise VmBootFailed; math.inf for all
    `dies_after`     seconds after which the VMM is gone
    `never_answers`  the guest is up, and nothing ever listens in it
    `leftovers`      what `sweep` finds
    All may be changed while it runs; a boot uses what holds when it begins.
    """

    def __init__(
        self,
        guest: Guest = idle_guest,
        *,
        boot_delay: float = 0,
        fails_to_boot: float = 0,
        dies_after: float = math.inf,
        never_answers: bool = False,
        leftovers: int = 0,
    ) -> None:
        self.guest = guest
        self.boot_delay = boot_delay
        self.fails_to_boot = fails_to_boot
        self.dies_after = dies_after
        self.never_answers = never_answers
        self.leftovers = leftovers
        self.booted: list[MachineSpec] = []
        """Every machine that was ever handed out."""
        self.running: dict[MachineId, FakeMachine] = {}
        self.most_running = 0

    async def run_machine(
        self, spec: MachineSpec, *, task_status: trio.TaskStatus[Machine] = trio.TASK_STATUS_IGNORED
    ) -> None:
        assert spec.id not in self.running, f"machine {spec.id} is running already"
        code, dies_after = self.guest, self.dies_after
        link = _Link()
        machine = FakeMachine(spec, FakeGuest(spec, link), link, answers=not self.never_answers)
        self.running[spec.id] = machine
        self.most_running = max(self.most_running, len(self.running))
        try:
            await trio.sleep(self.boot_delay)
            if self.fails_to_boot > 0:
                self.fails_to_boot -= 1
                why = f"machine {spec.id} cannot start: the directory /run/hypeman/{spec.id} cannot"
                raise VmBootFailed(f"{why} be made", evidence="a fake console")
            self.booted.append(spec)
            task_status.started(machine)
            await machine.run(code, dies_after)
        finally:
            del self.running[spec.id]

    async def sweep(self) -> int:
        await trio.lowlevel.checkpoint()
        found, self.leftovers = self.leftovers, 0
        return found
