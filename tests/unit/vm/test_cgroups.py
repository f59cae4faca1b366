"""Cgroups, in a directory that looks like a delegated subtree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.model.ids import MachineId
from supervisor.runtime.logs import log
from supervisor.runtime.process import run_tool
from supervisor.vm.cgroups import Cgroups, take_subtree
from supervisor.vm.machine import MachineSpec

SPEC = MachineSpec(MachineId("m1"), cpus=2, memory_mb=1024)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """The warnings of the test, as they come."""
    found: list[str] = []
    sink = log.add(lambda message: found.append(message.record["message"]), level="WARNING")
    yield found
    log.remove(sink)


def a_subtree(tmp_path: Path, *, controllers: str = "cpuset cpu io memory pids") -> Path:
    """Make what /proc and the cgroup file system show a service with `Delegate=yes`."""
    proc, root = tmp_path / "proc", tmp_path / "cg" / "hypeman.slice" / "hypeman.service"
    (proc / "self").mkdir(parents=True)
    root.mkdir(parents=True)
    (proc / "self/cgroup").write_text("1:cpu:/\n0::/hypeman.slice/hypeman.service\n")
    mount = f"35 24 0:30 / {tmp_path / 'cg'} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
    (proc / "self/mountinfo").write_text(mount)
    (root / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (root / "cgroup.controllers").write_text(controllers + "\n")
    return root


def test_the_daemon_makes_room_and_turns_on_what_there_is(tmp_path: Path) -> None:
    root = a_subtree(tmp_path)
    cgroups = take_subtree(tmp_path / "proc")
    assert cgroups == Cgroups(root, ("cpu", "memory", "pids"))
    assert (root / "daemon/cgroup.procs").read_text() == "0"
    assert (root / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_without_controllers_machines_still_have_their_places(tmp_path: Path) -> None:
    root = a_subtree(tmp_path, controllers="")
    assert take_subtree(tmp_path / "proc") == Cgroups(root, ())
    assert not (root / "cgroup.subtree_control").exists()


@pytest.mark.parametrize("others", ["1", f"{os.getpid()}\n1"], ids=["not us", "not only us"])
def test_a_cgroup_with_others_in_it_is_left_alone(tmp_path: Path, others: str) -> None:
    root = a_subtree(tmp_path)
    (root / "cgroup.procs").write_text(others)
    assert take_subtree(tmp_path / "proc") is None
    assert not (root / "daemon").exists()


def test_another_users_cgroup_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_subtree(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert take_subtree(tmp_path / "proc") is None


@pytest.mark.parametrize("cgroup", ["0::/\n", "4:memory:/a\n", ""], ids=["root", "v1", "none"])
def test_a_host_without_version_2_offers_nothing(tmp_path: Path, cgroup: str) -> None:
    a_subtree(tmp_path)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    assert take_subtree(tmp_path / "proc") is None


def test_a_machine_has_limits_while_it_lasts(tmp_path: Path) -> None:
    cgroups = Cgroups(tmp_path, ("cpu", "memory", "pids"))
    with cgroups.open(SPEC) as enter:
        place = tmp_path / "m1"
        assert enter[-1] == str(place)
        assert (place / "memory.max").read_text() == str((1024 + 1536) << 20)
        assert (place / "memory.oom.group").read_text() == "1"
        assert (place / "pids.max").read_text() == "512"
        assert (place / "cpu.max").read_text() == "300000 100000"
    # A real one's files go with it; here `rmdir` cannot, and that harms nobody.
    assert (place / "cgroup.kill").read_text() == "1"


def test_what_cannot_be_limited_is_not(tmp_path: Path) -> None:
    with Cgroups(tmp_path, ()).open(SPEC):
        assert list((tmp_path / "m1").iterdir()) == []


def test_a_machine_does_without_a_cgroup_that_cannot_be_made(tmp_path: Path) -> None:
    with Cgroups(tmp_path / "gone", ("memory",)).open(SPEC) as enter:
        assert enter == []


def in_a_host_that_refuses(root: Path) -> Cgroups:
    """A subtree in which no cgroup takes a process, whoever asks: also root."""
    (root / "m1" / "cgroup.procs").mkdir(parents=True)
    (root / "trial" / "cgroup.procs").mkdir(parents=True)
    return Cgroups(root, ())


async def test_a_host_that_lets_nobody_in_is_told_once_at_the_start(
    tmp_path: Path, warnings: list[str]
) -> None:
    assert not await in_a_host_that_refuses(tmp_path).is_usable()
    assert warnings == ["cgroup.refused"]


async def test_a_cgroup_that_takes_processes_is_used(tmp_path: Path, warnings: list[str]) -> None:
    cgroups = Cgroups(tmp_path, ())
    assert await cgroups.is_usable()
    with cgroups.open(SPEC) as enter:
        assert await run_tool([*enter, "echo", "a machine"]) == "a machine\n"
        assert (tmp_path / "m1/cgroup.procs").read_text() == "0\n"
        cgroups.check_inside(SPEC)
    assert warnings == []


async def test_a_machine_that_is_not_let_in_runs_all_the_same_and_is_warned_of(
    tmp_path: Path, warnings: list[str]
) -> None:
    cgroups = in_a_host_that_refuses(tmp_path)
    with cgroups.open(SPEC) as enter:
        assert await run_tool([*enter, "echo", "a machine"]) == "a machine\n"
        cgroups.check_inside(SPEC)
    assert warnings == ["cgroup.refused"]
    (tmp_path / "m1" / "cgroup.procs").rmdir()
    (tmp_path / "m1" / "cgroup.procs").write_text("")
    cgroups.check_inside(SPEC)
    assert warnings == ["cgroup.refused"] * 2


def test_what_an_earlier_daemon_left_is_ended(tmp_path: Path) -> None:
    (tmp_path / "daemon").mkdir()
    (tmp_path / "m1").mkdir()
    Cgroups(tmp_path, ()).sweep()
    assert not (tmp_path / "daemon/cgroup.kill").exists()
    assert (tmp_path / "m1/cgroup.kill").read_text() == "1"
