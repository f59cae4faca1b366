"""What every hypervisor promises, held against the fake and against real machines alike."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import socket
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from agent import wire
from supervisor.errors import GuestLost, VmBootFailed
from supervisor.model.build import ErrorReason
from supervisor.runtime.process import Process, run_daemon
from supervisor.vm.argv import VSOCK_NAME
from supervisor.vm.machine import GuestUnreachable, Machine, MachineSpec, wait_connect
from supervisor.vm.qemu_machine import QemuMachine
from supervisor.vm.vsock import MAX_UNANSWERED
from tests.contract.guest import COMMAND_PORT, ECHO_PORT
from tests.contract.harness import (
    FakeHarness,
    Harness,
    RealHarness,
    new_spec,
    receive_exactly,
    receive_frame,
    running,
)
from tests.kit import cancel_at_every_checkpoint
from tests.machines import ROOT
from tests.processes import find_processes, inside, is_alive, name_of, wait_dead

UNUSED_PORT = 5999
BULK_BYTES = 4 << 20


@asynccontextmanager
async def commanding(machine: Machine, line: str) -> AsyncIterator[trio.abc.Stream]:
    """Give the guest a command; the stream is its answer, until the block ends."""
    async with await wait_connect(machine, COMMAND_PORT) as stream:
        await receive_frame(stream)
        await stream.send_all(line.encode() + b"\n")
        yield stream


async def test_a_machine_keeps_what_is_promised_of_it_while_it_runs(harness: Harness) -> None:
    """One machine for everything that does not end it: a boot takes its time."""
    spec = new_spec()
    async with running(harness.hypervisor, spec) as machine:
        assert machine.id == spec.id
        assert await machine.is_answering()
        await a_connection_before_the_guest_is_up_is_refused_and_does_no_harm(machine)
        await it_says_who_it_is(machine)
        await a_port_that_nobody_listens_on_is_unreachable_again_and_again(machine)
        await callers_that_give_up_do_no_harm(machine)
        await bytes_arrive_whole_in_either_direction(machine)
        await the_guest_reaches_a_port_that_the_host_listens_on(machine)
        await a_listener_ends_with_its_block(machine)
        await what_the_guest_sent_unread_does_not_keep_it_from_noticing_a_close(machine)
        await another_machine_is_separate(harness, machine)
        connection = await wait_connect(machine, ECHO_PORT)
    # A connection ends with its machine.
    with contextlib.suppress(trio.BrokenResourceError):  # as good as an end
        assert await connection.receive_some(1) == b""
    await trio.aclose_forcefully(connection)
    assert harness.leftovers() == []


async def a_connection_before_the_guest_is_up_is_refused_and_does_no_harm(
    machine: Machine,
) -> None:
    refused = 0
    while True:
        try:
            stream = await machine.connect(ECHO_PORT)
        except GuestUnreachable:
            refused += 1
            await trio.sleep(0.001)  # a thousand tries a second, all through the boot
        else:
            break
    async with stream:
        await stream.send_all(b"at last")
        assert await receive_exactly(stream, 7) == b"at last"
    assert refused > 0


async def it_says_who_it_is(machine: Machine) -> None:
    async with await wait_connect(machine, COMMAND_PORT) as stream:
        assert await receive_frame(stream) == machine.id.encode()


async def a_port_that_nobody_listens_on_is_unreachable_again_and_again(machine: Machine) -> None:
    first = await wait_connect(machine, COMMAND_PORT)
    for _ in range(100):
        with pytest.raises(GuestUnreachable):
            await machine.connect(UNUSED_PORT)
    second = await machine.connect(COMMAND_PORT)
    for stream in (first, second):
        await receive_frame(stream)
        await stream.aclose()


async def callers_that_give_up_do_no_harm(machine: Machine) -> None:
    """At every point of a connection, and many at a time."""

    async def connect_and_close() -> None:
        async with await machine.connect(ECHO_PORT) as stream:
            await stream.send_all(b"x")

    async def check(n: int) -> None:
        async with await machine.connect(ECHO_PORT) as stream:
            await stream.send_all(b"still here")
            assert await receive_exactly(stream, 10) == b"still here", f"cancelled at {n}"

    assert await cancel_at_every_checkpoint(connect_and_close, check) >= 2
    for _ in range(20):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(connect_and_close)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel(reason="all give up")
        await check(0)


async def bytes_arrive_whole_in_either_direction(machine: Machine) -> None:
    """One direction after the other, as `Machine.connect` asks for."""
    sent = os.urandom(BULK_BYTES)
    async with commanding(machine, f"take {BULK_BYTES}") as stream:
        await stream.send_all(sent)
        assert await receive_exactly(stream, 32) == hashlib.sha256(sent).digest()
    async with commanding(machine, f"give {BULK_BYTES}") as stream:
        received = await receive_exactly(stream, BULK_BYTES)
        assert received == bytes(range(256)) * (BULK_BYTES // 256)


async def the_guest_reaches_a_port_that_the_host_listens_on(machine: Machine) -> None:
    async with machine.listen(5003) as listener, commanding(machine, "connect 5003") as answer:
        async with await listener.accept() as stream:
            said = await receive_exactly(stream, len(machine.id) + 5)
            assert said == b"from " + machine.id.encode()
            await stream.send_all(b"welcome")
            assert await receive_exactly(answer, 7) == b"welcome"
        # The guest waits for the end of its connection, then ends ours.
        assert await answer.receive_some(1) == b""


async def a_listener_ends_with_its_block(machine: Machine) -> None:
    async with machine.listen(5003) as listener:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    async with machine.listen(5003):
        pass  # the port is free again


async def what_the_guest_sent_unread_does_not_keep_it_from_noticing_a_close(
    machine: Machine,
) -> None:
    async with machine.listen(5003) as listener, commanding(machine, "connect 5003") as answer:
        stream = await listener.accept()
        await receive_exactly(stream, 1)
        await stream.send_all(b"ok")
        assert await receive_exactly(answer, 2) == b"ok"
        await stream.aclose()  # "rom <id>" has not been read
        assert await answer.receive_some(1) == b""


async def another_machine_is_separate(harness: Harness, first: Machine) -> None:
    """It ends while its guest is busy, and the first does not notice."""
    spec, before = new_spec(), sorted(harness.leftovers())
    async with running(harness.hypervisor, spec) as second:
        async with await wait_connect(second, COMMAND_PORT) as stream:
            assert await receive_frame(stream) == spec.id.encode()
        async with (
            first.listen(5003) as mine,
            second.listen(5003) as other,
            commanding(second, "connect 5003"),
            await other.accept() as stream,
        ):
            assert await receive_exactly(stream, 5 + len(spec.id)) == b"from " + spec.id.encode()
            with trio.move_on_after(0.1) as scope:
                await mine.accept()
            assert scope.cancelled_caught
    assert sorted(harness.leftovers()) == before
    await it_says_who_it_is(first)


async def test_a_guest_that_powers_off_ends_its_machine(harness: Harness) -> None:
    async with trio.open_nursery() as nursery:
        machine: Machine = await nursery.start(harness.hypervisor.run_machine, new_spec())
        async with commanding(machine, "power-off"):
            end = await machine.wait_exit()
    # The nursery is not cancelled: `run_machine` returned by itself.
    assert end.description == "the guest powered off"
    assert end.reason is ErrorReason.GUEST_STOPPED
    assert "the guest says goodbye" in machine.evidence().console
    assert harness.leftovers() == []


async def test_a_panic_ends_the_machine(harness: Harness) -> None:
    async with trio.open_nursery() as nursery:
        machine: Machine = await nursery.start(harness.hypervisor.run_machine, new_spec())
        async with commanding(machine, "panic"):
            end = await machine.wait_exit()
    assert end.description == "the guest's kernel panicked, or the guest restarted"
    assert end.reason is ErrorReason.GUEST_STOPPED
    assert harness.leftovers() == []


async def test_a_killed_vmm_is_noticed_and_explained(harness: Harness) -> None:
    async with trio.open_nursery() as nursery:
        machine: Machine = await nursery.start(harness.hypervisor.run_machine, new_spec())
        async with await wait_connect(machine, COMMAND_PORT) as stream:
            await receive_frame(stream)
            harness.kill(machine)
            end = await machine.wait_exit()
    assert end.description == "the VMM ended: killed by SIGKILL"
    assert end.reason is ErrorReason.VMM_EXITED
    assert machine.evidence().console != ""
    assert not await machine.is_answering()
    with pytest.raises((GuestLost, GuestUnreachable)):
        await machine.connect(COMMAND_PORT)
    with pytest.raises(GuestLost, match="killed by SIGKILL"):
        await wait_connect(machine, COMMAND_PORT)
    assert harness.leftovers() == []


async def test_cancel_anywhere_before_the_machine_is_up_leaves_nothing(harness: Harness) -> None:
    async def operation() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(harness.hypervisor.run_machine, new_spec())
            nursery.cancel_scope.cancel(reason="seen enough")

    async def check(n: int) -> None:
        await trio.lowlevel.checkpoint()
        assert harness.leftovers() == [], f"cancelled at {n}"

    assert await cancel_at_every_checkpoint(operation, check) > 0


async def test_a_machine_can_be_made_again_under_the_same_id(harness: Harness) -> None:
    spec = new_spec()
    for _ in range(2):
        async with running(harness.hypervisor, spec) as machine:
            assert machine.id == spec.id
        assert harness.leftovers() == []


async def test_a_machine_that_cannot_start_is_a_boot_failure(harness: Harness) -> None:
    spec = new_spec()
    if isinstance(harness, FakeHarness):
        harness.fake.fails_to_boot = 1
    else:
        # More than any host has: the VMM refuses it.
        spec = MachineSpec(spec.id, cpus=1000, memory_mb=512)
    with pytest.raises(VmBootFailed) as caught:
        await harness.hypervisor.run_machine(spec)
    assert spec.id in caught.value.message
    assert caught.value.evidence != ""
    assert harness.leftovers() == []


# Only of real machines.


@pytest.mark.e2e
async def test_the_agent_of_the_builder_image_greets(builder: RealHarness) -> None:
    spec = MachineSpec(new_spec().id, cpus=2, memory_mb=2048)
    async with running(builder.hypervisor, spec) as machine:
        async with await wait_connect(machine, wire.CONTROL_PORT) as stream:
            body = await receive_frame(stream)
        hello = wire.parse(body)
        assert isinstance(hello, wire.Hello)
        assert hello.protocol == wire.PROTOCOL_VERSION


@pytest.mark.e2e
@pytest.mark.parametrize("harness", ["qemu"], indirect=True)
async def test_a_machine_whose_vsock_device_dies_ends(harness: RealHarness) -> None:
    async with trio.open_nursery() as nursery:
        machine: QemuMachine = await nursery.start(harness.hypervisor.run_machine, new_spec())
        os.kill(inside(machine.processes.device.pid), signal.SIGKILL)
        end = await machine.wait_exit()
    assert end.description == "the machine's vsock device ended: killed by SIGKILL"
    assert end.reason is ErrorReason.VSOCK_DEVICE_EXITED
    assert harness.leftovers() == []


@pytest.mark.e2e
@pytest.mark.parametrize("harness", ["qemu"], indirect=True)
async def test_a_vsock_device_that_crashes_and_stays_ends_its_machine(
    harness: RealHarness,
) -> None:
    async with trio.open_nursery() as nursery:
        machine: QemuMachine = await nursery.start(harness.hypervisor.run_machine, new_spec())
        await (await wait_connect(machine, ECHO_PORT)).aclose()
        # What `connect` never does: hang up between the question and its answer.
        os.kill(inside(machine.processes.vmm.pid), signal.SIGSTOP)
        with socket.socket(socket.AF_UNIX) as impatient:
            impatient.connect(str(harness.root / "machines" / machine.id / VSOCK_NAME))
            impatient.sendall(b"CONNECT %d\n" % ECHO_PORT)
            while unread_by_peer(impatient):  # noqa: ASYNC110 - sockets have no event for it
                await trio.sleep(0.005)
        os.kill(inside(machine.processes.vmm.pid), signal.SIGCONT)
        end = await machine.wait_exit()
    assert end.description == "the machine's vsock device ended: it crashed"
    assert "panicked at" in machine.evidence().host
    assert harness.leftovers() == []


def unread_by_peer(sock: socket.socket) -> int:
    """Return how many bytes the other end of a UNIX socket has not read yet."""
    count: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    return count


@pytest.mark.e2e
@pytest.mark.parametrize("harness", ["qemu"], indirect=True)
async def test_a_stopped_process_does_not_hold_up_the_end(harness: RealHarness) -> None:
    async with trio.open_nursery() as nursery:  # the end takes as long as its grace
        for stuck in ({"vmm"}, {"device"}, {"vmm", "device"}):
            nursery.start_soon(stop_and_end, harness, stuck)
    assert harness.leftovers() == []


async def stop_and_end(harness: RealHarness, stuck: set[str]) -> None:
    """Run a machine, some of whose processes are stopped when it is to end."""
    async with running(harness.hypervisor, new_spec()) as machine:
        assert isinstance(machine, QemuMachine)
        stream = await wait_connect(machine, ECHO_PORT)
        if "vmm" in stuck:
            os.kill(inside(machine.processes.vmm.pid), signal.SIGSTOP)
            assert not await machine.is_answering()
        if stuck == {"vmm"}:
            await a_guest_that_hangs_is_left_alone(machine)
        if "device" in stuck:
            os.kill(inside(machine.processes.device.pid), signal.SIGSTOP)
    await trio.aclose_forcefully(stream)


async def a_guest_that_hangs_is_left_alone(machine: Machine) -> None:
    for _ in range(MAX_UNANSWERED):
        with trio.move_on_after(0.01) as scope:
            await machine.connect(ECHO_PORT)
        assert scope.cancelled_caught
    with pytest.raises(GuestUnreachable, match="connections unanswered"):
        await machine.connect(ECHO_PORT)


@pytest.mark.e2e
@pytest.mark.parametrize("harness", ["qemu"], indirect=True)
async def test_a_killed_daemon_leaves_no_process_and_its_directories_are_swept(
    harness: RealHarness,
) -> None:
    program = ROOT / "tests" / "contract" / "doomed.py"
    async with trio.open_nursery() as nursery:
        argv = [sys.executable, str(program), str(harness.root)]
        start = partial(run_daemon, argv, env={"PYTHONPATH": str(ROOT)}, stop_grace=0)
        daemon: Process = await nursery.start(start)
        while "machine.started" not in daemon.tail():
            assert daemon.exit is None, daemon.tail()
            await trio.sleep(0.05)
        pids = find_processes(f"{harness.root}/machines/")
        assert {name_of(pid) for pid in pids} >= {"qemu-system-x86", "vhost-device-vs"}
        os.kill(daemon.pid, signal.SIGKILL)
        await daemon.wait()
        for pid in pids:
            await wait_dead(pid)
    assert await harness.hypervisor.sweep() == 1
    assert harness.leftovers() == []
    assert await harness.hypervisor.sweep() == 0
    assert not any(is_alive(pid) for pid in pids)
