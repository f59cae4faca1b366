"""Fake machines with bodies: what a real one has on the host, so that leaving it behind shows."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from supervisor.errors import HostError, VmBootFailed
from supervisor.runtime.files import remove_tree_sync
from supervisor.runtime.process import run_daemon
from supervisor.vm.machine import Machine, MachineSpec
from supervisor.vm.scratch import make_scratch_sync
from supervisor.vm.sweep import sweep_machines
from tests.chaos.faults import Points
from tests.fakes.hypervisor import FakeHypervisor, Guest


class BodiedHypervisor(FakeHypervisor):
    """Each machine is a directory with a socket, a nameless disk and a process."""

    platform = "fake"

    def __init__(
        self, guest: Guest, *, runtime_dir: Path, data_dir: Path, template: Path, points: Points
    ) -> None:
        super().__init__(guest)
        self._machines = runtime_dir / "machines"
        self._data_dir = data_dir
        self._template = template
        self._points = points

    async def run_machine(
        self, spec: MachineSpec, *, task_status: trio.TaskStatus[Machine] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await self._run_bodied(spec, task_status)
        except OSError as exc:  # no descriptor is left
            raise VmBootFailed(f"the machine cannot start: {exc.strerror}") from exc

    async def _run_bodied(self, spec: MachineSpec, task_status: trio.TaskStatus[Machine]) -> None:
        failure: Exception | None = None
        directory = self._machines / spec.id
        self._pass("machine, before it")
        directory.mkdir(mode=0o700)
        try:
            self._pass("machine, directory made")
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(os.fspath(directory / "v.sock"))
                async with trio.open_nursery() as nursery:
                    try:
                        await nursery.start(partial(run_daemon, self._argv(directory)))
                        self._pass("machine, process started")
                        disk = make_scratch_sync(self._template, self._data_dir)
                        try:
                            self._pass("machine, disk made")
                            await super().run_machine(spec, task_status=task_status)
                        finally:
                            os.close(disk)
                    except (HostError, OSError) as exc:
                        failure = exc
                    nursery.cancel_scope.cancel(reason="the machine is over")
            self._pass("machine, process ended")
        finally:
            with suppress(OSError):  # the next start's sweep has it
                remove_tree_sync(directory)
        if failure is not None:
            raise failure

    async def sweep(self) -> int:
        return await sweep_machines(self._machines)

    def _argv(self, directory: Path) -> list[str]:
        console = directory / "console"
        console.touch()
        return ["tail", "-f", "/dev/null", os.fspath(console)]

    def _pass(self, point: str) -> None:
        try:
            self._points.pass_by(point)
        except OSError as exc:
            raise VmBootFailed(f"the machine cannot start: {exc.strerror}") from exc
