"""Limits that a kernel enforces: the daemon's cgroups in a machine that has all controllers.

The host of the tests may have none to give away (version 1, or another's); a machine has its own.
"""

from __future__ import annotations

import io
import json
import signal
import zipfile
from pathlib import Path

import pytest

import supervisor
from supervisor.vm.machine import MachineSpec, wait_connect
from tests.contract.guest import COMMAND_PORT
from tests.contract.harness import RealHarness, new_spec, receive_frame, running
from tests.machines import image_running, path_with_tools

GUEST = Path(__file__).with_name("cgroupguest.py")
PACKAGE = Path(supervisor.__file__).parent
NEEDED = ("errors.py", "model/*.py", "runtime/__init__.py", "vm/cgroups.py", "vm/machine.py")
KILLED = -signal.SIGKILL


def packed() -> bytes:
    """Return the guest's program with what it imports, as a file that Python runs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.write(GUEST, "__main__.py")
        for pattern in ("__init__.py", "vm/__init__.py", *NEEDED):
            for path in PACKAGE.glob(pattern):
                archive.write(path, path.relative_to(PACKAGE.parent))
    return buffer.getvalue()


@pytest.mark.e2e
async def test_a_kernel_with_all_controllers_holds_machines_to_their_limits(
    machines_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", path_with_tools())
    program = tmp_path / "cgroupguest.pyz"
    program.write_bytes(packed())
    # Its own initramfs, but the directory of all: other machines are not there while it runs.
    harness = await RealHarness.start(machines_root, image_running(program, tmp_path))
    spec = MachineSpec(new_spec().id, cpus=2, memory_mb=768)
    async with (
        running(harness.hypervisor, spec) as machine,
        await wait_connect(machine, COMMAND_PORT) as stream,
    ):
        found = json.loads(await receive_frame(stream))
    assert "failed" not in found, found["failed"]
    assert found["controllers"] == ["cpu", "memory", "pids"], found
    # The whole group goes at once: a VMM does not outlive half of itself.
    assert (found["eater"], found["beside the eater"]) == (KILLED, KILLED)
    assert found["memory"]["oom_kill"] >= 2
    assert found["forker"] != 0
    assert found["pids"]["max"] > 0
    assert found["tasks"] <= 20
    assert found["throttled"] > 0
    assert found["spinners"] == [KILLED, KILLED], "what is left in it ends with it"
    assert not found["left"]
    assert harness.leftovers() == []
