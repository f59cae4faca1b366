"""The cage of a real machine's processes. tests/systemd has that of an ordinary user's daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from supervisor.runtime.process import run_tool
from supervisor.vm.qemu_machine import QemuMachine
from supervisor.vm.sandbox import CAGE, MACHINE_UID, Sandbox, kinds
from tests.cage import NAMESPACES, check_caged, limits_of, namespace_of, status_of
from tests.contract.harness import RealHarness, new_spec, running
from tests.processes import find_processes, inside, wait_dead

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("harness", ["qemu"], indirect=True)
async def test_the_vmm_and_its_vsock_device_are_caged(harness: RealHarness) -> None:
    """Before the guest has done anything."""
    async with running(harness.hypervisor, new_spec()) as machine:
        assert isinstance(machine, QemuMachine)
        vmm, device = inside(machine.processes.vmm.pid), inside(machine.processes.device.pid)
        for pid in (vmm, device):
            check_caged(
                pid,
                str(harness.root / "machines" / machine.id),
                MACHINE_UID if os.getuid() == 0 else os.getuid(),
            )
        assert status_of(vmm)["Seccomp"] == "2", "QEMU's own sandbox is on"
        assert limits_of(device)["Max file size"] == "0", "the device writes no file"
        for namespace in NAMESPACES:
            assert namespace_of(vmm, namespace) != namespace_of(device, namespace)


STARTER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from supervisor.runtime.process import TIED_TO_PARENT
from supervisor.vm.sandbox import Needs, kinds
kind = next(kind for kind in kinds() if kind.name == sys.argv[1])
for moment in range(25):
    daemon = os.fork()
    if daemon == 0:
        argv = kind.wrap(["sleep", "600"], Needs(writes=(Path(sys.argv[2]),)))
        for _ in range(2):
            subprocess.Popen([*TIED_TO_PARENT, *argv], start_new_session=True)
        signal.pause()
    time.sleep(moment * 0.002)
    os.kill(daemon, signal.SIGKILL)
    os.waitpid(daemon, 0)
"""


@pytest.mark.parametrize("kind", dict.fromkeys([kinds()[0], CAGE]), ids=lambda kind: kind.name)
async def test_a_daemon_killed_while_it_starts_a_program_leaves_none(
    kind: Sandbox, tmp_path: Path
) -> None:
    """At one moment after the other of the start, which takes some ten milliseconds."""
    await run_tool([sys.executable, "-c", STARTER, kind.name, os.fspath(tmp_path)])
    left = [pid for pid in find_processes(str(tmp_path)) if pid != os.getpid()]
    try:
        for pid in left:
            await wait_dead(pid)
    finally:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
