"""What the kernel says about memory and disk, and who is killed for want of memory."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from agent import vitals


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Files below /proc that say something else than they do."""
    files: dict[str, str] = {}
    real = vitals._read
    monkeypatch.setattr(vitals, "_read", lambda path: files[path] if path in files else real(path))
    return files


def meminfo(total_kib: int, available_kib: int) -> str:
    return f"MemTotal: {total_kib} kB\nMemFree: 1 kB\nMemAvailable:  {available_kib} kB\n"


@pytest.mark.parametrize(
    ("total", "available", "is_low"),
    [
        (2 << 20, 1 << 20, False),
        (2 << 20, 61 << 10, True),  # under 3 % of 2 GiB
        (2 << 20, 64 << 10, False),
        (512 << 10, 31 << 10, True),  # under the floor
        (512 << 10, 33 << 10, False),
    ],
)
def test_memory_is_low_before_it_is_gone(
    proc: dict[str, str], total: int, available: int, is_low: bool
) -> None:
    proc["/proc/meminfo"] = meminfo(total, available)
    assert vitals.is_memory_low() is is_low


def test_a_kernel_that_does_not_say_has_enough(proc: dict[str, str]) -> None:
    proc["/proc/meminfo"] = ""
    assert not vitals.is_memory_low()


def test_this_machine_has_enough() -> None:
    assert not vitals.is_memory_low()
    assert vitals.oom_kills() >= 0


@pytest.mark.parametrize(
    ("free_bytes", "free_inodes", "is_full"),
    [(1 << 30, 1 << 20, False), (1 << 20, 1 << 20, True), (1 << 30, 10, True)],
)
def test_a_disk_is_full_without_room_or_inodes(
    monkeypatch: pytest.MonkeyPatch, free_bytes: int, free_inodes: int, is_full: bool
) -> None:
    about = SimpleNamespace(
        f_bavail=free_bytes // 4096, f_frsize=4096, f_files=1 << 20, f_favail=free_inodes
    )
    monkeypatch.setattr(os, "statvfs", lambda path: about)
    assert vitals.is_disk_full("/") is is_full
    watch = vitals.DiskWatch("/")
    watch.look()
    about.f_bavail = about.f_favail = 1 << 30
    watch.look()
    assert watch.was_full is is_full


def test_the_worst_process_is_one_that_may_be_killed() -> None:
    pid = vitals.worst_process()
    assert pid is not None
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) > -1000


async def test_a_process_is_killed_when_memory_runs_low(
    proc: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proc["/proc/vmstat"] = "oom_kill 3\n"
    proc["/proc/meminfo"] = meminfo(2 << 20, 1 << 20)
    monkeypatch.setattr(vitals, "MEMORY_WATCH_SECONDS", 0.001)
    process = await trio.lowlevel.open_process(["sleep", "600"])
    monkeypatch.setattr(vitals, "worst_process", lambda: process.pid)
    watch = vitals.MemoryWatch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        assert watch.kills == 0
        proc["/proc/meminfo"] = meminfo(2 << 20, 1 << 10)
        with trio.fail_after(30):
            assert await process.wait() == -9
        nursery.cancel_scope.cancel(reason="seen")
    assert watch.kills >= 1
    proc["/proc/vmstat"] = "oom_kill 5\n"  # and two by the kernel
    assert watch.kills >= 3
