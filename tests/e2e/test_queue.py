"""Capacity, seen from outside."""

from __future__ import annotations

from tests.e2e.daemon import Daemon

MEET = "FROM busybox\nRUN echo running && sleep 600\n"


def test_third_build_waits_at_position_one_while_two_run_in_two_machines(daemon: Daemon) -> None:
    first, second, third = (
        daemon.submit({"Dockerfile": MEET})["id"],
        daemon.submit({"Dockerfile": MEET})["id"],
        daemon.submit({"Dockerfile": "FROM busybox\nRUN echo third > /third\n"})["id"],
    )
    for build_id in (first, second):
        daemon.wait_for(build_id, "running")
    waiting = daemon.get(third)
    assert waiting["status"] == "queued"
    assert waiting["queue_position"] == 1
    assert len(daemon.machine_directories()) == 2
    with daemon.client() as client:
        for build_id in (first, second):
            client.delete(f"/builds/{build_id}")
    done = daemon.wait(third)
    assert done["status"] == "ready"
    assert "queue_position" not in done
