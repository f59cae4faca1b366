"""The QEMU driver: what is decided once, for all machines. qemu_machine.py has the life of one."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from supervisor.config import Accelerator
from supervisor.errors import ConfigError, ResourceExhausted, VmBootFailed
from supervisor.model.ids import MachineId
from supervisor.model.image import BuilderImage
from supervisor.runtime.logs import log
from supervisor.runtime.process import run_tool
from supervisor.vm.argv import QEMU, VSOCK_DEVICE, VSOCK_NAME
from supervisor.vm.cgroups import Cgroups, take_subtree
from supervisor.vm.machine import Machine, MachineSpec
from supervisor.vm.platform import EMULATED, Platform
from supervisor.vm.probe import ProbeKey, choose_platform, read_boot_id_sync
from supervisor.vm.qemu_machine import QemuMachine, Shape, run_qemu
from supervisor.vm.sandbox import Sandbox, find_sandbox
from supervisor.vm.sweep import sweep_machines
from supervisor.vm.tsc import TscMeasurement

PROBE_CACHE = "platform.json"
MAX_ID = 32
MAX_SOCKET_PATH = 107
"""sun_path of unix(7), less the NUL."""

_PROGRAMS = (QEMU, VSOCK_DEVICE, "prlimit", "setpriv")
_ID = re.compile(rf"[a-z0-9-]{{1,{MAX_ID}}}", re.ASCII)
_PROBE_SPEC = MachineSpec(MachineId("probe"), cpus=1, memory_mb=512)


@dataclass(frozen=True, slots=True)
class QemuConfig:
    """The slice of the settings that the driver needs."""

    runtime_dir: Path
    """Machine directories are made here; only one daemon may use it."""
    data_dir: Path
    """Scratch disks are made here: a place with room."""
    image: BuilderImage
    accelerator: Accelerator
    stop_grace: float
    """Seconds a VMM gets after a polite stop before it is killed."""
    probe_timeout: float
    """Seconds a machine may take to come up when an accelerator is tried."""


class QemuHypervisor:
    """Boots machines of one kind from one image. Made by `start_hypervisor`."""

    def __init__(
        self,
        config: QemuConfig,
        sandbox: Sandbox,
        cgroups: Cgroups | None,
        tsc_khz: int | None,
        disk: trio.CapacityLimiter,
    ) -> None:
        _check_path_length(config.runtime_dir)
        self._config = config
        self._sandbox = sandbox
        self._cgroups = cgroups
        self._tsc_khz = tsc_khz
        self._disk = disk
        self._machines = config.runtime_dir / "machines"
        self.platform = EMULATED

    async def run_machine(
        self, spec: MachineSpec, *, task_status: trio.TaskStatus[Machine] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Boot a machine and keep it until cancelled; see `Hypervisor.run_machine`."""
        await run_qemu(self._shape(spec, self.platform), self._disk, task_status=task_status)

    async def sweep(self) -> int:
        """Remove what machines of an earlier, killed daemon left behind; return how many."""
        if self._cgroups is not None:
            self._cgroups.sweep()
        return await sweep_machines(self._machines)

    async def comes_up(self, platform: Platform) -> bool:
        """Boot a machine of that kind for at most the probe's time; say whether it came up.

        Raises VmBootFailed if the VMM cannot even be started.
        """
        came_up, failure = False, None
        run = partial(run_qemu, self._shape(_PROBE_SPEC, platform), self._disk)
        with trio.move_on_after(self._config.probe_timeout):
            async with trio.open_nursery() as nursery:
                try:
                    machine: QemuMachine = await nursery.start(run)
                except VmBootFailed as exc:
                    failure = exc  # raised below; from in here it would arrive in a group
                except ResourceExhausted as exc:
                    failure = VmBootFailed(exc.message)
                else:
                    await machine.console.wait_up()
                    came_up = True
                nursery.cancel_scope.cancel(reason="the probe has its answer")
        if failure is not None:
            raise failure
        return came_up

    def _shape(self, spec: MachineSpec, platform: Platform) -> Shape:
        assert _ID.fullmatch(spec.id), f"{spec.id!r} cannot name a machine"
        return Shape(
            spec=spec,
            image=self._config.image,
            platform=platform,
            tsc_khz=self._tsc_khz,
            sandbox=self._sandbox,
            cgroups=self._cgroups,
            directory=self._machines / spec.id,
            scratch_dir=self._config.data_dir,
            stop_grace=self._config.stop_grace,
        )


async def start_hypervisor(config: QemuConfig, disk: trio.CapacityLimiter) -> QemuHypervisor:
    """Find out what this host can do, and return the driver that makes the best of it.

    Takes up to twice `probe_timeout` the first time after a boot of the host. Raises ConfigError if
    a program is missing or the configured accelerator cannot be used, and ToolFailed if a program
    does not work.
    """
    _check_programs()
    tsc = TscMeasurement()
    cgroups = take_subtree()  # first: with a child there, the cgroup would not be ours alone
    if cgroups is not None and not await cgroups.is_usable():
        cgroups = None
    trials = ([QEMU, "--version"], [VSOCK_DEVICE, "--version"])
    version, _ = [(await run_tool(trial)).partition("\n")[0] for trial in trials]
    sandbox = await find_sandbox(trials)
    tsc_khz = await tsc.wait_khz()
    hypervisor = QemuHypervisor(config, sandbox, cgroups, tsc_khz, disk)
    await hypervisor.sweep()  # what a killed daemon's probe left would stand in the way of this one
    hypervisor.platform = await choose_platform(
        config.accelerator,
        hypervisor.comes_up,
        cache=config.data_dir / PROBE_CACHE,
        key=ProbeKey(read_boot_id_sync(), version, config.image.kernel_sha256),
    )
    log.bind(
        platform=str(hypervisor.platform),
        vmm=version,
        tsc_khz=tsc_khz,
        sandbox=sandbox.name,
        cgroups="none" if cgroups is None else " ".join(cgroups.controllers) or "no controllers",
    ).info("hypervisor.ready")
    return hypervisor


def _check_programs() -> None:
    """Raise ConfigError, naming them all, if programs are missing without which nothing boots.

    What only the stricter sandboxes need is not among them: `find_sandbox` goes without it.
    """
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"not found in PATH: {', '.join(missing)}; install what is missing (`./run setup`) or"
            " correct PATH, and start again"
        )


def _check_path_length(runtime_dir: Path) -> None:
    longest = len(os.fsencode(runtime_dir / "machines")) + len(f"//{VSOCK_NAME}_65535") + MAX_ID
    if longest > MAX_SOCKET_PATH:
        raise ConfigError(
            f"RUNTIME_DIR {runtime_dir} is {longest - MAX_SOCKET_PATH} bytes too long:"
            f" the kernel takes socket paths of at most {MAX_SOCKET_PATH}"
        )
