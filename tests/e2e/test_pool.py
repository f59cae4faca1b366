"""A daemon with a pool: builds in warm machines, and nothing left of any of them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.daemon import BASES_DIR, START_SECONDS, Daemon
from tests.processes import find_processes

HELLO = "FROM busybox\nRUN nproc > /nproc; echo said\n"


def test_builds_use_warm_machines_each_its_own_and_a_stop_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """One that dies while it waits is replaced, and the next is lent and takes its orders."""
    root = tmp_path_factory.mktemp("hm")
    (root / "seeds").mkdir()
    (root / "seeds/busybox").symlink_to(BASES_DIR / "busybox")
    environment = {"POOL_SIZE": "1", "SEED_IMAGES_DIR": str(root / "seeds")}
    # An emulated machine that stops in its firmware is replaced while this still waits for one.
    daemon = Daemon(root, {**environment, "BOOT_TIMEOUT": str(START_SECONDS / 2)})
    daemon.start()
    try:
        machines = []
        for number in range(3):
            wait_logged(daemon, "pool.machine_idle", number + 1)
            (machine,) = daemon.machine_directories()
            machines.append(machine.name)
            if number == 1:
                kill_vmm(machine)
                wait_logged(daemon, "pool.machine_lost", 1)
            else:
                build = daemon.build_image({"Dockerfile": HELLO})
                # Milliseconds; a boot takes thousands.
                assert build["phases"]["boot"] + build["phases"]["lease"] < 1000
            assert not machine.exists()
        assert len(set(machines)) == 3
    finally:
        status = daemon.stop()
    assert status == 0, daemon.log_tail()
    assert daemon.leftovers() == []


def kill_vmm(machine: Path) -> None:
    """End the VMM of a machine from outside; all that is in its sandbox ends with it."""
    for pid in find_processes(f"{machine}/"):
        if "qemu" in Path(f"/proc/{pid}/exe").readlink().name:
            os.kill(pid, signal.SIGKILL)


def wait_logged(daemon: Daemon, message: str, times: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while daemon.log_file.read_text(errors="replace").count(message) < times:
        assert time.monotonic() < deadline, daemon.log_tail()
        time.sleep(0.1)
