"""What a dead daemon leaves, played by harmless processes with the right names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.model.ids import MachineId
from supervisor.vm.sandbox import MACHINE_UID
from supervisor.vm.sweep import is_leftover, sweep_machines
from supervisor.vm.usage import measure_machines_sync
from tests.processes import is_alive

SLEEP = "import sys, time; sys.stdout.write('up'); sys.stdout.flush(); time.sleep(600)"


class Orphans:
    """Processes that call themselves what the test likes."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *arguments: object, user: int | None = None) -> int:
        process = subprocess.Popen(
            [name, "-c", SLEEP, *map(str, arguments)],
            executable=sys.executable if user is None else "/usr/bin/python3",
            stdout=subprocess.PIPE,
            user=user,
        )
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.read(2) == b"up"
        return process.pid

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@pytest.fixture
def orphans() -> Iterator[Orphans]:
    orphans = Orphans()
    yield orphans
    orphans.end()


async def test_processes_and_directories_of_machines_are_gone(
    tmp_path: Path, orphans: Orphans
) -> None:
    machines = tmp_path / "machines"
    for name in ("one", "two"):
        (machines / name).mkdir(parents=True)
        (machines / name / "v.sock").touch()
    pids = [
        orphans.start("/usr/bin/qemu-system-x86_64", "-pidfile", machines / "one" / "vmm.pid"),
        orphans.start("vhost-device-vsock", "--socket", machines / "one" / "dev.sock"),
        orphans.start("setpriv", "--", "qemu-system-x86_64", machines / "two" / "vmm.pid"),
    ]
    assert await sweep_machines(machines) == 2
    assert not any(map(is_alive, pids))
    assert list(machines.iterdir()) == []
    assert await sweep_machines(machines) == 0


def test_what_a_machine_takes_is_that_of_its_vmm(tmp_path: Path, orphans: Orphans) -> None:
    machines = tmp_path / "machines"
    orphans.start("vhost-device-vsock", "--socket", machines / "one" / "dev.sock")
    orphans.start("bwrap", "--", "qemu-system-x86_64", "-pidfile", machines / "one" / "vmm.pid")
    one = orphans.start("/usr/bin/qemu-system-x86_64", "-pidfile", machines / "one" / "vmm.pid")
    two = orphans.start("qemu-system-x86_64", "-pidfile", machines / "two" / "vmm.pid")
    orphans.start("qemu-system-x86_64", "-pidfile", "/run/other/machines/three/vmm.pid")
    used = measure_machines_sync(machines)
    assert {name: each.pid for name, each in used.items()} == {"one": one, "two": two}
    stated = Path(f"/proc/{one}/status").read_text().partition("VmRSS:")[2].split()[0]
    # A page or two may have come in meanwhile, and the kernel counts lazily.
    assert used[MachineId("one")].rss_bytes == pytest.approx(int(stated) << 10, rel=0.2)


async def test_what_is_not_ours_is_left_alone(tmp_path: Path, orphans: Orphans) -> None:
    machines = tmp_path / "machines"
    pids = [
        orphans.start("less", machines / "one" / "vmm.pid"),
        orphans.start("qemu-system-x86_64", "-pidfile", "/run/other/machines/one/vmm.pid"),
        orphans.start("qemu-system-x86_64", "-name", "machines"),
        orphans.start("qemu-system-x86_64", f"{machines}-of-another/one/vmm.pid"),
    ]
    assert await sweep_machines(machines) == 0
    assert all(map(is_alive, pids))


def test_a_process_of_another_user_is_left_alone(
    tmp_path: Path, orphans: Orphans, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = orphans.start("qemu-system-x86_64", tmp_path / "one" / "vmm.pid")
    entry = Path(f"/proc/{pid}")
    assert is_leftover(entry, tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert not is_leftover(entry, tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start another user's process")
def test_roots_machines_are_found_though_another_user_runs_them(
    tmp_path: Path, orphans: Orphans, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = orphans.start("qemu-system-x86_64", tmp_path / "one" / "vmm.pid", user=MACHINE_UID)
    assert is_leftover(Path(f"/proc/{pid}"), tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert not is_leftover(Path(f"/proc/{pid}"), tmp_path)


def test_a_process_that_goes_while_it_is_looked_at_is_no_error(tmp_path: Path) -> None:
    assert not is_leftover(tmp_path / "gone", tmp_path)


async def test_a_directory_that_was_never_made_is_empty(tmp_path: Path) -> None:
    assert await sweep_machines(tmp_path / "none") == 0
