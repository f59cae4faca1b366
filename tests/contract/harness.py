"""What the contract of hypervisors needs to know about each of them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import trio

from supervisor.config import Accelerator
from supervisor.model.ids import MachineId
from supervisor.model.image import BuilderImage
from supervisor.vm.machine import Hypervisor, Machine, MachineSpec
from supervisor.vm.qemu import QemuConfig, start_hypervisor
from supervisor.vm.qemu_machine import QemuMachine
from tests.contract.guest import COMMAND_PORT, ECHO_PORT
from tests.fakes.hypervisor import FakeGuest, FakeHypervisor, FakeMachine
from tests.processes import find_processes, inside

LONGEST_SECONDS = 300.0
"""Of one machine of a test, booted in emulation on a busy host: a bound on hanging only."""

_NUMBERS = itertools.count(1)


def new_spec() -> MachineSpec:
    """Return the shape of a machine that has not been there before."""
    return MachineSpec(MachineId(f"contract-{next(_NUMBERS)}"), cpus=1, memory_mb=512)


class Harness(Protocol):
    """A hypervisor, and a look behind it."""

    @property
    def hypervisor(self) -> Hypervisor: ...

    def kill(self, machine: Machine) -> None:
        """End a machine's VMM from outside."""

    def leftovers(self) -> list[str]:
        """Say what is there of machines: nothing, when none runs."""


class FakeHarness:
    """The fake, with a guest that does what guest.py does."""

    def __init__(self) -> None:
        self.fake = FakeHypervisor(_fake_guest)

    @property
    def hypervisor(self) -> Hypervisor:
        return self.fake

    def kill(self, machine: Machine) -> None:
        assert isinstance(machine, FakeMachine)
        machine.kill()

    def leftovers(self) -> list[str]:
        return [f"machine {id}" for id in self.fake.running]


class RealHarness:
    """QEMU in software: KVM has the probe's tests."""

    def __init__(self, hypervisor: Hypervisor, root: Path) -> None:
        self._hypervisor = hypervisor
        self.root = root

    @classmethod
    async def start(cls, root: Path, image: BuilderImage) -> RealHarness:
        config = QemuConfig(
            runtime_dir=root,
            data_dir=root,
            image=image,
            accelerator=Accelerator.TCG,
            stop_grace=2,
            probe_timeout=8,
        )
        return cls(await start_hypervisor(config, trio.CapacityLimiter(2)), root)

    @property
    def hypervisor(self) -> Hypervisor:
        return self._hypervisor

    def kill(self, machine: Machine) -> None:
        assert isinstance(machine, QemuMachine)
        os.kill(inside(machine.processes.vmm.pid), signal.SIGKILL)

    def leftovers(self) -> list[str]:
        # Its parent remains; scratch disks would be next to it.
        paths = [path for path in self.root.rglob("*") if path.parent != self.root]
        return [*map(str, paths), *(f"process {pid}" for pid in find_processes(f"{self.root}/"))]


@asynccontextmanager
async def running(hypervisor: Hypervisor, spec: MachineSpec) -> AsyncIterator[Machine]:
    """Run a machine around the block; it ends with the block. Nothing waits for ever."""
    with trio.fail_after(LONGEST_SECONDS):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(hypervisor.run_machine, spec)
            nursery.cancel_scope.cancel(reason="the block is over")


async def receive_exactly(stream: trio.abc.Stream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        assert more, f"the stream ended after {len(data)} bytes: {bytes(data[:100])!r}"
        data += more
    return bytes(data)


async def receive_frame(stream: trio.abc.Stream) -> bytes:
    size = int.from_bytes(await receive_exactly(stream, 4), "big")
    return await receive_exactly(stream, size)


async def _fake_guest(guest: FakeGuest) -> None:
    await trio.sleep(0.02)  # a boot takes its time
    async with (
        guest.listen(COMMAND_PORT) as commands,
        guest.listen(ECHO_PORT) as echoes,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_serve_echo, echoes)
        while True:
            nursery.start_soon(_obey, guest, await commands.accept())


async def _obey(guest: FakeGuest, stream: trio.abc.Stream) -> None:
    name = guest.spec.id.encode()
    async with stream:
        await stream.send_all(len(name).to_bytes(4, "big") + name)
        line = b""
        while not line.endswith(b"\n"):
            data = await stream.receive_some(1)
            if not data:
                return
            line += data
        match line.decode().split():
            case ["connect", port]:
                async with await guest.connect(int(port)) as to_host:
                    await to_host.send_all(b"from " + name)
                    await stream.send_all(await to_host.receive_some(100))
                    await to_host.receive_some(1)
            case ["take", count]:
                data = await receive_exactly(stream, int(count))
                await stream.send_all(hashlib.sha256(data).digest())
            case ["give", count]:
                await stream.send_all(bytes(range(256)) * (int(count) // 256))
            case ["power-off"]:
                guest.print("the guest says goodbye\n")
                await guest.power_off()
            case ["panic"]:
                await guest.panic()


async def _serve_echo(listener: trio.abc.Listener[trio.abc.Stream]) -> None:
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(_echo, await listener.accept())


async def _echo(stream: trio.abc.Stream) -> None:
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):  # the host gave up
            while data := await stream.receive_some(65536):
                await stream.send_all(data)
