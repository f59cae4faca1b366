"""How builds end when they do not succeed, and what is left of them: nothing.

They are submitted together, and two run at a time, so that the capacity is seen, too; and the one
that waits for its timeout holds up nobody.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.daemon import Daemon

SLEEP = "FROM busybox\nRUN echo asleep && sleep 600\n"
TIMEOUT_SECONDS = 60
"""Much longer than it takes to run its step; the others take about as long, one after the other."""
CLEAN_SECONDS = 5
BUILDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "cancelled": (SLEEP, {}),
    "timeout": (SLEEP, {"timeout_seconds": TIMEOUT_SECONDS}),
    "failing": ("FROM busybox\nRUN echo the last words; (exit 42)\nRUN echo n''ever\n", {}),
    "unparsable": ("FROM busybox\nFROBNICATE everything\n", {}),
    "without base": ("FROM busybox:no-such-tag\n", {}),
}
"""In the order in which they are submitted."""


@dataclass(frozen=True)
class Ends:
    """What has become of the builds, and what was seen while the first two were running."""

    ids: Mapping[str, str]
    at_capacity: Mapping[str, Mapping[str, Any]]
    machines: int
    commands: list[str]
    """Of the cancelled build's processes, before."""
    cancel_answer: int
    builds: Mapping[str, Mapping[str, Any]]


def test_missing_dockerfile_is_refused_before_anything_boots(daemon: Daemon) -> None:
    answer = daemon.post({"readme.txt": "no Dockerfile here"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "dockerfile_required"
    assert daemon.leftovers() == []


@pytest.fixture(scope="module")
def ends(daemon: Daemon) -> Ends:
    ids = {
        name: daemon.submit({"Dockerfile": dockerfile}, **fields)["id"]
        for name, (dockerfile, fields) in BUILDS.items()
    }
    for name in ("cancelled", "timeout"):
        daemon.wait_for(ids[name], "asleep")
    at_capacity = {name: daemon.get(ids[name]) for name in ids}
    machines = len(daemon.machine_directories())
    commands = _of_build(daemon, ids["cancelled"])
    with daemon.client() as client, ThreadPoolExecutor(len(ids)) as pool:
        answer = client.delete(f"/builds/{ids['cancelled']}")
        builds = dict(pool.map(lambda name: (name, _end(daemon, ids[name])), ids))
    daemon.wait_clean(CLEAN_SECONDS)
    return Ends(ids, at_capacity, machines, commands, answer.status_code, builds)


def test_third_build_waits_at_position_one_while_two_run_in_two_machines(ends: Ends) -> None:
    assert ends.machines == 2
    statuses = [build["status"] for build in ends.at_capacity.values()]
    assert statuses == ["building"] * 2 + ["queued"] * 3
    assert [ends.at_capacity[name].get("queue_position") for name in BUILDS] == [
        None,
        None,
        1,
        2,
        3,
    ]
    done = ends.builds["failing"]
    assert done["started_at"] > ends.builds["timeout"]["started_at"]
    assert "build" in done["phases"], "it has run"
    assert "queue_position" not in done


def test_failing_run_names_step_command_exit_code_and_last_lines(
    daemon: Daemon, ends: Ends
) -> None:
    build = ends.builds["failing"]
    assert build["status"] == "failed"
    assert build["error_code"] == "build_failed"
    assert "echo the last words; (exit 42)" in build["error"]
    assert "42" in build["error"]
    assert "the last words" in build["error"].split("exit 42)", 1)[1]
    assert {"queue", "lease", "boot", "source", "build"} <= build["phases"].keys()
    assert "never" not in daemon.log(build["id"])


def test_dockerfile_that_does_not_parse(ends: Ends) -> None:
    build = ends.builds["unparsable"]
    assert build["error_code"] == "dockerfile_invalid"
    assert "FROBNICATE" in build["error"]


def test_base_image_that_does_not_exist(ends: Ends) -> None:
    build = ends.builds["without base"]
    assert build["error_code"] == "base_image_not_found"
    assert "no-such-tag" in build["error"]


def test_cancel_of_a_running_step_leaves_nothing_within_five_seconds(
    daemon: Daemon, ends: Ends
) -> None:
    """`_end` has looked for what is left."""
    assert any("qemu" in command for command in ends.commands)
    assert ends.cancel_answer == 204
    build = ends.builds["cancelled"]
    assert build["status"] == "cancelled"
    assert build["error_code"] == "cancelled"
    with daemon.client() as client:
        assert client.delete(f"/builds/{build['id']}").status_code == 409


def test_timeout_ends_the_build_and_its_machine(ends: Ends) -> None:
    """`_end` has looked for the machine."""
    build = ends.builds["timeout"]
    assert build["status"] == "failed"
    assert build["error_code"] == "build_timeout"
    assert f"{TIMEOUT_SECONDS} s" in build["error"]


def test_nobody_else_on_the_host_can_read_what_is_stored(daemon: Daemon) -> None:
    daemon.data_dir.chmod(0o755)  # as a service manager may have made it
    build = daemon.build({"Dockerfile": "FROM scratch\n"}, secrets=[{"id": "no_such_secret"}])
    assert build["error_code"] == "secret_not_found", "its files are there without a machine's time"
    for path in daemon.data_dir.rglob("*"):
        assert path.is_symlink() or path.stat().st_mode & 0o007 == 0, path


def _end(daemon: Daemon, build_id: str) -> dict[str, Any]:
    """Wait for the end of a build, and for that of its machine, which comes within five seconds."""
    build = daemon.wait(build_id)
    deadline = time.monotonic() + CLEAN_SECONDS
    while left := _of_build(daemon, build_id):
        assert time.monotonic() < deadline, f"left after {CLEAN_SECONDS} s: {left}"
        time.sleep(0.05)
    return build


def _of_build(daemon: Daemon, build_id: str) -> list[str]:
    return [each for each in daemon.leftovers() if build_id in each]
