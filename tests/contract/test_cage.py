"""The cage of a real machine's processes. tests/systemd has that of an ordinary user's daemon."""

from __future__ import annotations

import os

import pytest

from supervisor.vm.machine import wait_connect
from supervisor.vm.qemu_machine import QemuMachine
from supervisor.vm.sandbox import MACHINE_UID
from tests.cage import NAMESPACES, check_caged, limits_of, namespace_of, status_of
from tests.contract.guest import ECHO_PORT
from tests.contract.harness import RealHarness, new_spec, running
from tests.processes import inside

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("harness", ["qemu"], indirect=True)
async def test_the_vmm_and_its_vsock_device_are_caged(harness: RealHarness) -> None:
    async with running(harness.hypervisor, new_spec()) as machine:
        assert isinstance(machine, QemuMachine)
        await (await wait_connect(machine, ECHO_PORT)).aclose()
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
