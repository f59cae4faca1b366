"""One QEMU machine, from its first file to its last.

A machine is two processes and a directory:

    RUNTIME_DIR/machines/<id>/      mode 0700
        dev.sock                    the vsock device's, for the VMM
        v.sock, v.sock_<port>       the host's ends of the guest's vsock
        vmm.pid                     its number in its own namespace; names the directory for `sweep`

The scratch disk has no name, and console and QMP are socket pairs. So when the processes have ended
and the directory is removed, nothing is left.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from supervisor.errors import HostError, ResourceExhausted, VmBootFailed
from supervisor.model.build import ErrorReason
from supervisor.model.ids import MachineId
from supervisor.model.image import BuilderImage
from supervisor.runtime.files import remove_tree_sync
from supervisor.runtime.logs import log
from supervisor.runtime.process import Exit, Process, run_daemon, terminate
from supervisor.runtime.threads import run_in_thread
from supervisor.vm.argv import DEVICE_NAME, VSOCK_NAME, Descriptors, qemu_argv, vsock_argv
from supervisor.vm.cgroups import Cgroups
from supervisor.vm.console import UP, Console
from supervisor.vm.machine import Evidence, MachineExit, MachineSpec
from supervisor.vm.platform import Platform
from supervisor.vm.qmp import Qmp, QmpBroken
from supervisor.vm.sandbox import Needs, Sandbox
from supervisor.vm.scratch import make_scratch_sync
from supervisor.vm.vsock import Vsock

START_SECONDS = 20.0
"""How long each process may take until it answers: milliseconds usually, more on a busy host."""
POLL_SECONDS = 0.005
LAST_WORDS_SECONDS = 0.5
"""How long console and QMP are read after the VMM's end. What it wrote before is there already."""

_STOPPED = "the machine was stopped"
_SHUTDOWNS = {
    "guest-shutdown": "the guest powered off",
    "guest-reset": "the guest's kernel panicked, or the guest restarted",
    "guest-panic": "the guest's kernel panicked",
    "host-qmp-quit": _STOPPED,
}
"""The reasons of QMP's SHUTDOWN event, in words."""
_BY_GUEST = frozenset({"guest-shutdown", "guest-reset", "guest-panic"})


@dataclass(frozen=True, slots=True)
class Shape:
    """Everything that a machine is made of, decided before it starts."""

    spec: MachineSpec
    image: BuilderImage
    platform: Platform
    tsc_khz: int | None
    """The rate of the host's time-stamp counter, if it is known."""
    sandbox: Sandbox
    cgroups: Cgroups | None
    directory: Path
    """The machine's own; does not exist yet."""
    scratch_dir: Path
    stop_grace: float
    """Seconds the VMM gets after a polite stop."""


class QemuMachine:
    """A running machine, as its leaseholder sees it. Made and ended by `run_qemu`."""

    def __init__(
        self, id: MachineId, processes: Processes, console: Console, vsock: Vsock, qmp: Qmp
    ) -> None:
        self.id = id
        self.processes = processes
        self.console = console
        self._vsock = vsock
        self._qmp = qmp
        self._exit: MachineExit | None = None
        self._ended = trio.Event()

    def __repr__(self) -> str:
        state = "running" if self._exit is None else self._exit.description
        return f"<QemuMachine {self.id}, pid {self.processes.vmm.pid}: {state}>"

    async def connect(self, port: int) -> trio.abc.Stream:
        return await self._vsock.connect(port)

    def listen(self, port: int) -> AbstractAsyncContextManager[trio.abc.Listener[trio.abc.Stream]]:
        return self._vsock.listen(port)

    async def wait_exit(self) -> MachineExit:
        await self._ended.wait()
        assert self._exit is not None
        return self._exit

    async def is_answering(self) -> bool:
        return await self._qmp.is_answering()

    def evidence(self) -> Evidence:
        return Evidence(
            console=_gather(("console", self.console.tail())),
            host=_gather(
                ("VMM", self.processes.vmm.tail()),
                ("vsock device", self.processes.device.tail()),
            ),
        )

    def end(self, description: str, reason: ErrorReason = ErrorReason.VMM_EXITED) -> None:
        """Note how the machine ended; the first to tell knows."""
        if self._exit is None:
            self._exit = MachineExit(description, reason)
            self._vsock.close(description, reason)
            self._ended.set()
            log.bind(machine_id=self.id, why=description).info("machine.ended")


@dataclass(frozen=True, slots=True)
class Processes:
    """The two processes of a machine."""

    vmm: Process
    device: Process


async def run_qemu(
    shape: Shape,
    disk: trio.CapacityLimiter,
    *,
    task_status: trio.TaskStatus[QemuMachine] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Boot a machine, hand it out, and keep it until it ends or this is cancelled.

    When this returns, nothing of the machine is left. Raises VmBootFailed if it cannot be started;
    ResourceExhausted if that is for a full disk.
    """
    failure: HostError | None = None
    with ExitStack() as ours:
        _make_directory(shape.directory, shape.sandbox.uid, ours)
        enter = ours.enter_context(shape.cgroups.open(shape.spec)) if shape.cgroups else []
        async with trio.open_nursery() as nursery:
            try:
                await _Run(shape, disk, nursery, ours, enter).run(task_status)
            except HostError as exc:
                failure = exc  # raised below; from in here it would arrive in a group
            except OSError as exc:  # no descriptor is left
                failure = HostError(f"the host refuses what a machine needs: {exc.strerror}")
            nursery.cancel_scope.cancel(reason=f"machine {shape.spec.id} is over")
    if failure is not None:
        raise _as_boot_failure(shape.spec.id, failure)


class _Run:
    """The steps of a machine's life, in order.

    `nursery` holds the processes: cancelled, it ends them. `ours` closes what is ours of the
    machine after that, because the polite stop still needs QMP.
    """

    def __init__(
        self,
        shape: Shape,
        disk: trio.CapacityLimiter,
        nursery: trio.Nursery,
        ours: ExitStack,
        enter: list[str],
    ) -> None:
        self._shape = shape
        self._enter = enter
        self._disk = disk
        self._nursery = nursery
        self._ours = ours
        self._vsock = Vsock(shape.directory / VSOCK_NAME, nursery)
        self._console = Console(self._on_up)
        self._began = trio.current_time()

    async def run(self, task_status: trio.TaskStatus[QemuMachine]) -> None:
        device = await self._start_device()
        with ExitStack() as theirs:  # the VMM has copies of these when the block ends
            vsock_side = await self._connect_device(device, theirs)
            console, console_side = self._open_pair(theirs)
            control, control_side = self._open_pair(theirs)
            fds = Descriptors(
                console=console_side.fileno(),
                qmp=control_side.fileno(),
                vsock=vsock_side.fileno(),
                scratch=await self._make_scratch(theirs),
            )
            qmp = Qmp(control)
            vmm = await self._start_vmm(fds, qmp)
        await self._negotiate(qmp, vmm)
        if self._enter and self._shape.cgroups is not None:
            self._shape.cgroups.check_inside(self._shape.spec)
        machine = QemuMachine(
            self._shape.spec.id, Processes(vmm, device), self._console, self._vsock, qmp
        )
        self._log("machine.started")
        try:
            task_status.started(machine)
            self._nursery.start_soon(self._watch_device, machine)
            end = await self._attend(vmm, console, qmp)
            stopped = qmp.stop_reason or ""
            machine.end(
                _SHUTDOWNS.get(stopped, f"the VMM ended: {end.why}"),
                ErrorReason.GUEST_STOPPED if stopped in _BY_GUEST else ErrorReason.VMM_EXITED,
            )
        finally:
            machine.end(_STOPPED)

    async def _start_device(self) -> Process:
        directory = self._shape.directory
        argv = self._wrap(vsock_argv(directory), Needs(writes=(directory,)))

        def end_crashed(_: bytes) -> None:
            # Its threads panic one by one, and the process stays, serving nobody.
            if device is not None and "panicked at" in device.tail():
                device.signal_group(signal.SIGKILL)

        device: Process | None = None
        # Its state is its connections, so there is nothing to be polite about. A guest can have it
        # warn without end, so it is told not to.
        run = partial(run_daemon, argv, stop_grace=0, env={"RUST_LOG": "error"}, sink=end_crashed)
        device = await self._nursery.start(run)
        assert device is not None
        return device

    def _wrap(self, argv: list[str], needs: Needs) -> list[str]:
        """Return the command line that runs `argv` in the machine's cgroup and in its cage."""
        return [*self._enter, *self._shape.sandbox.wrap(argv, needs)]

    async def _connect_device(self, device: Process, theirs: ExitStack) -> socket.socket:
        """Connect to the vsock device for the VMM, as soon as it listens.

        So the VMM never looks for a socket that is not there yet. The device takes one connection
        here, and has made the socket for the host's connections before.
        """
        path = os.fspath(self._shape.directory / DEVICE_NAME)
        with trio.move_on_after(START_SECONDS):
            while device.exit is None:
                sock = theirs.enter_context(_unix_socket())
                if sock.connect_ex(path) == 0:
                    return sock
                sock.close()
                await trio.sleep(POLL_SECONDS)
        why = "did not listen in time" if device.exit is None else f"ended: {device.exit.why}"
        raise VmBootFailed(f"the vsock device {why}", evidence=device.tail())

    def _open_pair(self, theirs: ExitStack) -> tuple[socket.socket, socket.socket]:
        our_end, their_end = socket.socketpair()
        our_end.setblocking(False)
        self._ours.enter_context(our_end)
        theirs.enter_context(their_end)
        return our_end, their_end

    async def _make_scratch(self, theirs: ExitStack) -> int:
        template, directory = self._shape.image.scratch, self._shape.scratch_dir
        fd = await run_in_thread(self._disk, make_scratch_sync, template, directory)
        theirs.callback(os.close, fd)
        return fd

    async def _start_vmm(self, fds: Descriptors, qmp: Qmp) -> Process:
        def stop(process: Process) -> None:
            if not qmp.quit_nowait():
                terminate(process)

        shape = self._shape
        argv = qemu_argv(
            shape.spec, shape.image, shape.platform, shape.directory, fds, shape.tsc_khz
        )
        needs = Needs(
            reads=(shape.image.kernel, shape.image.initramfs, shape.image.rootfs),
            writes=(shape.directory,),
            # Its memory is a file as well, as far as the limit is concerned.
            max_file_bytes=max(os.fstat(fds.scratch).st_size, shape.spec.memory_mb << 20),
        )
        run = partial(run_daemon, self._wrap(argv, needs), pass_fds=fds.all())
        vmm: Process = await self._nursery.start(
            partial(run, stop=stop, stop_grace=shape.stop_grace)
        )
        return vmm

    async def _negotiate(self, qmp: Qmp, vmm: Process) -> None:
        """Wait until the VMM answers. Raises VmBootFailed if it does not."""
        why = f"did not answer within {START_SECONDS:g} s"
        with trio.move_on_after(START_SECONDS):
            try:
                await qmp.negotiate()
                return
            except QmpBroken as exc:
                why = str(exc)
            end = await vmm.wait()
            why = f"ended: {end.why}"
        raise VmBootFailed(f"the VMM {why}", evidence=vmm.tail())

    async def _attend(self, vmm: Process, console: socket.socket, qmp: Qmp) -> Exit:
        """Take in what the VMM says until it has ended, and its last words."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pump, console, self._console)
            nursery.start_soon(qmp.follow)
            end = await vmm.wait()
            nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS_SECONDS
        return end

    async def _watch_device(self, machine: QemuMachine) -> None:
        """End a machine whose vsock device has ended: nobody can reach it any more."""
        end = await machine.processes.device.wait()
        why = "it crashed" if "panicked at" in end.tail else end.why
        machine.end(f"the machine's vsock device ended: {why}", ErrorReason.VSOCK_DEVICE_EXITED)
        self._nursery.cancel_scope.cancel(reason="the vsock device ended")

    def _on_up(self) -> None:
        self._vsock.open()
        # Of what the guest prints, a number: the rest is not for the log.
        self._log("machine.up", guest_seconds=self._console.stamps[UP])

    def _log(self, message: str, **facts: object) -> None:
        seconds = round(trio.current_time() - self._began, 3)
        log.bind(machine_id=self._shape.spec.id, seconds=seconds, **facts).info(message)


async def _pump(sock: socket.socket, console: Console) -> None:
    """Feed the console until the VMM closes its end."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    try:
        while data := await stream.receive_some(65536):
            console.feed(bytes(data))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


def _unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def _make_directory(directory: Path, uid: int | None, ours: ExitStack) -> None:
    """Make the machine's directory; it goes last of all that is ours. Raises VmBootFailed.

    `uid` is whom it belongs to, if not to the daemon's user.
    """
    try:
        directory.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
        ours.callback(_remove_directory, directory)
        if uid is not None:
            os.chown(directory, uid, uid)
    except OSError as exc:
        why = f"the directory {directory} cannot be made: {exc.strerror}"
        raise VmBootFailed(why) from exc


def _remove_directory(directory: Path) -> None:
    """Remove a machine's directory, a handful of names. What the host refuses, a start does."""
    try:
        remove_tree_sync(directory)
    except OSError as exc:  # no descriptor is left
        log.bind(machine_id=directory.name, why=exc.strerror).error("machine.directory_not_removed")


def _as_boot_failure(id: MachineId, failure: HostError) -> HostError:
    """Return why a machine could not be started. A full disk has a reason of its own."""
    if isinstance(failure, ResourceExhausted):
        return failure
    evidence = failure.evidence if isinstance(failure, VmBootFailed) else ""
    told = VmBootFailed(f"machine {id} cannot start: {failure.message}", evidence=evidence)
    told.__cause__ = failure
    return told


def _gather(*parts: tuple[str, str]) -> str:
    """Return what was said, under who said it; who said nothing is left out."""
    return "\n".join(f"[{name}]\n{text.rstrip()}" for name, text in parts if text.strip())
