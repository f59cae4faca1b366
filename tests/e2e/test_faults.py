"""Faults of real machines: each ends with a reason of its own, its evidence and a free slot; and
`kill -9` of the daemon among real machines.

Memory and disks that are exhausted need a whole builder: tests/e2e/test_attacks.py has them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import FINAL, Daemon
from tests.machines import image_running
from tests.processes import find_processes

QUICK = "FROM scratch\nCOPY Dockerfile /\n"
GUEST = Path(__file__).with_name("faultyguest.py")
READY = "it may happen now"
SILENCE_SECONDS = 6
CLEAN_SECONDS = 5


@dataclass(frozen=True)
class Fault:
    """What happens to a machine, and how it is told."""

    reason: str
    says: str
    """In the error."""
    name: str = "none"
    """What its guest does by itself."""
    program: str = ""
    """The process of its host that gets `signal`."""
    signal: signal.Signals = signal.SIGKILL
    cpus: int = 2
    last_frame: str = "received log 1"
    """Among the last messages that the evidence tells of; empty if it never came to any."""


# Two at a time, in this order: the slow ones beside each other.
FAULTS = {
    "VMM stopped": Fault(
        "vmm_unresponsive", f"for {SILENCE_SECONDS} s", program="qemu", signal=signal.SIGSTOP
    ),
    "agent wedged": Fault("guest_silent", f"said nothing for {SILENCE_SECONDS} s", "wedge"),
    "VMM killed": Fault("vmm_exited", "killed by SIGKILL", program="qemu"),
    "vsock device killed": Fault("vsock_device_exited", "vsock device", program="vhost-device"),
    "link cut within a message": Fault("link_lost", "in the middle of a message", "cut"),
    # Its kernel may not have sent the last of what the agent has said.
    "guest panicked": Fault("guest_stopped", "panicked", "panic", last_frame="sent host_ready"),
    "boot failed": Fault("boot_failed", "panicked", cpus=1, last_frame=""),
}


@dataclass(frozen=True)
class End:
    """What has become of a build, as its owner and as the operator sees it."""

    build: dict[str, Any]
    log: str
    evidence: str


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The builder image, with the agent of the faults."""
    images = tmp_path_factory.mktemp("images")
    directory = images / "hypeman" / "builder" / "latest"
    directory.mkdir(parents=True)
    real = image_running(GUEST, directory).kernel.parent
    for path in real.iterdir():
        if path.name != "initramfs":
            (directory / path.name).symlink_to(path)
    return images


@pytest.fixture(scope="module")
def ends(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, End]:
    """Every fault once, in one daemon, two machines at a time."""
    daemon = Daemon(
        tmp_path_factory.mktemp("hf"),
        {
            "LINK_SILENCE": str(SILENCE_SECONDS),
            "IMAGES_DIR": str(images),
            "SEED_IMAGES_DIR": str(images / "none"),
            "MAX_CONCURRENT_SOURCE_BUILDS": "2",
        },
    )
    daemon.start()
    try:
        with ThreadPoolExecutor(2) as two:
            ends = dict(two.map(lambda name: (name, _suffer(daemon, FAULTS[name])), FAULTS))
        daemon.wait_clean(CLEAN_SECONDS)
        said = daemon.log_file.read_text()
    finally:
        status = daemon.stop()
    assert status == 0, daemon.log_tail()
    assert daemon.machine_directories() == []
    assert "hypeman: " not in said, "what a guest prints is not for the log"
    return ends


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_apart_with_evidence_and_frees_its_slot(
    name: str, ends: dict[str, End]
) -> None:
    fault, end = FAULTS[name], ends[name]
    assert end.build["status"] == "failed"
    assert (end.build["error_code"], end.build["error_reason"]) == ("builder_lost", fault.reason)
    assert fault.says in end.build["error"]
    assert "\n" in end.build["error"], "the console's last words are for the tenant, too"
    assert end.build["error"].splitlines()[0] in end.log
    assert f"builder_lost, {fault.reason}\n" in end.evidence
    assert "hypeman:" in end.evidence.partition("[console]\n")[2]
    assert fault.last_frame in end.evidence.rpartition("[messages]\n")[2]


def test_every_fault_has_a_reason_of_its_own(ends: dict[str, End]) -> None:
    assert len({end.build["error_reason"] for end in ends.values()}) == len(FAULTS)


def _suffer(daemon: Daemon, fault: Fault) -> End:
    build_id = daemon.submit(
        {"Dockerfile": "FROM scratch\n"},
        build_args={"FAULT": fault.name},
        cpus=fault.cpus,
        memory_mb=512,
    )["id"]
    if fault.program:
        daemon.wait_for(build_id, READY)
        os.kill(_process_of(daemon, build_id, fault.program), fault.signal)
    build = daemon.wait(build_id)
    with daemon.client() as tenant:
        assert tenant.get(f"/builds/{build_id}/evidence").status_code == 403
    return End(build, daemon.log(build_id), daemon.evidence(build_id))


def test_daemon_killed_among_real_machines_loses_no_build_and_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("hk")
    daemon = Daemon(root, {"SEED_IMAGES_DIR": str(root / "none")})
    daemon.start()
    try:
        builds = [daemon.submit({"Dockerfile": QUICK})["id"] for _ in range(2)]
        # In the queue, in a boot, in a build: at another moment of the machines' lives each time.
        for after_seconds in (0.0, 0.3, 1.0, 2.5, 4.0):
            time.sleep(after_seconds)
            daemon.kill()
            assert _wait_no_processes(daemon) == []
            daemon.start()
        ends = [daemon.wait(build_id) for build_id in builds]
        for build in ends:
            assert build["status"] in FINAL
            assert build["attempt"] <= 3
        last = daemon.build_image({"Dockerfile": QUICK})
        assert last["attempt"] == 1
        for build_id in builds:
            finals = [event["status"] for event in daemon.follow(build_id) if "status" in event]
            assert sum(status in FINAL for status in finals) == 1
        daemon.wait_clean(CLEAN_SECONDS)
    finally:
        status = daemon.stop()
    assert status == 0, daemon.log_tail()
    assert daemon.machine_directories() == []


def _process_of(daemon: Daemon, build_id: str, program: str) -> int:
    """Return the process of a build's machine that runs `program` itself."""
    found = []
    for pid in find_processes(build_id):
        with contextlib.suppress(OSError):
            if program in Path(f"/proc/{pid}/exe").readlink().name:
                found.append(pid)
    assert len(found) == 1, (found, daemon.descendants())
    return found[0]


def _wait_no_processes(daemon: Daemon) -> list[str]:
    """Wait until the kernel has ended what the daemon has started; return what is left."""
    mark = str(daemon.runtime_dir / "machines")
    deadline = time.monotonic() + 10
    while (left := find_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [f"{pid}: {command}" for pid in left if (command := _command_of(pid))]


def _command_of(pid: int) -> str:
    """Return the command line of a process, or nothing if it has gone meanwhile."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""
