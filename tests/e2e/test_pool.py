"""A daemon with a pool: builds in warm machines, and nothing left of any of them."""

from __future__ import annotations

import time

import pytest

from tests.e2e.daemon import START_SECONDS, Daemon

HELLO = "FROM busybox\nRUN nproc > /nproc; echo said\n"


def test_builds_use_warm_machines_each_its_own_and_a_stop_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    daemon = Daemon(tmp_path_factory.mktemp("hm"), settings={"POOL_SIZE": "1"})
    daemon.start()
    try:
        machines = []
        for _ in range(2):
            wait_logged(daemon, "pool.machine_idle", len(machines) + 1)
            (machine,) = daemon.machine_directories()
            machines.append(machine.name)
            build = daemon.build_image({"Dockerfile": HELLO})
            # Milliseconds; a boot takes thousands.
            assert build["phases"]["boot"] + build["phases"]["lease"] < 1000
            assert not machine.exists()
        assert len(set(machines)) == 2
    finally:
        status = daemon.stop()
    assert status == 0, daemon.log_tail()
    assert daemon.leftovers() == []


def wait_logged(daemon: Daemon, message: str, times: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while daemon.log_file.read_text(errors="replace").count(message) < times:
        assert time.monotonic() < deadline, daemon.log_tail()
        time.sleep(0.1)
