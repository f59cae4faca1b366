"""Faults of real machines: each ends with its reason, its evidence and a free slot; and `kill -9`
of the daemon among real machines.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import FINAL, Daemon
from tests.processes import find_processes

SLEEP = "FROM busybox\nRUN echo asleep && sleep 600\n"
QUICK = "FROM busybox\nRUN echo quick > /quick\n"
SILENCE_SECONDS = 15


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that gives a silent guest up soon."""
    daemon = Daemon(
        tmp_path_factory.mktemp("hf"),
        {"LINK_SILENCE": str(SILENCE_SECONDS), "POOL_SIZE": "0"},
    )
    daemon.start()
    try:
        yield daemon
    finally:
        status = daemon.stop()
    assert status == 0, daemon.log_tail()
    assert daemon.machine_directories() == []


def test_lost_machines_are_told_apart_and_free_their_slots(faulty: Daemon) -> None:
    killed, paused = (faulty.submit({"Dockerfile": SLEEP})["id"] for _ in range(2))
    for build_id in (killed, paused):
        faulty.wait_for(build_id, "asleep")
    _signal(_process_of(faulty, killed, "qemu-system"), signal.SIGKILL)
    _signal(_process_of(faulty, paused, "qemu-system"), signal.SIGSTOP)
    builds = {build_id: faulty.wait(build_id) for build_id in (killed, paused)}
    for build in builds.values():
        assert build["status"] == "failed"
        assert build["error_code"] == "builder_lost"
        assert "hypeman:" in build["error"], "the console's last words are the evidence"
        assert build["error"].splitlines()[0] in faulty.log(build["id"])
    assert "killed by SIGKILL" in builds[killed]["error"]
    assert f"said nothing for {SILENCE_SECONDS} s" in builds[paused]["error"]
    faulty.wait_clean(5)
    assert "hypeman: " not in faulty.log_file.read_text(), "what a guest prints is not for the log"


def test_a_machine_without_its_vsock_device_is_lost_at_once(faulty: Daemon) -> None:
    build_id = faulty.submit({"Dockerfile": SLEEP})["id"]
    faulty.wait_for(build_id, "asleep")
    _signal(_process_of(faulty, build_id, "vhost-device-vsock"), signal.SIGKILL)
    build = faulty.wait(build_id)
    assert build["error_code"] == "builder_lost"
    assert "vsock device" in build["error"]
    faulty.wait_clean(5)


def test_daemon_killed_among_real_machines_loses_no_build_and_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    daemon = Daemon(tmp_path_factory.mktemp("hk"), {"POOL_SIZE": "0"})
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
        daemon.wait_clean(5)
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


def _signal(pid: int, number: signal.Signals) -> None:
    os.kill(pid, number)


def _wait_no_processes(daemon: Daemon) -> list[int]:
    """Wait until the kernel has ended what the daemon has started; return what is left."""
    mark = str(daemon.runtime_dir / "machines")
    deadline = time.monotonic() + 10
    while (left := find_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
