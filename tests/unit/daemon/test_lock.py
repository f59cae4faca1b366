"""One daemon for each directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from supervisor.daemon.lock import hold_lock
from supervisor.errors import ConfigError


async def fail_to_lock(directory: Path, setting: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        async with hold_lock(directory, setting):
            pytest.fail("the lock is held")


async def test_a_second_daemon_is_told_who_is_there_and_what_to_set(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with hold_lock(tmp_path, "RUNTIME_DIR"):
        await fail_to_lock(tmp_path, "RUNTIME_DIR", rf"process {os.getpid()}\b.*RUNTIME_DIR")
    async with hold_lock(tmp_path, "RUNTIME_DIR"):
        pass


async def test_a_lock_that_is_let_go_a_moment_later_is_waited_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def hold(*, task_status: trio.TaskStatus[None]) -> None:
        async with hold_lock(tmp_path, "DATA_DIR"):
            task_status.started()
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: hold(task_status=task_status))
        async with hold_lock(tmp_path, "DATA_DIR"):
            pass


async def test_a_lock_that_cannot_be_opened_is_told_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    await fail_to_lock(tmp_path, "DATA_DIR", r"lock.*cannot be opened: Is a directory.*DATA_DIR")


async def test_a_full_disk_does_not_keep_the_lock_from_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    def refuse(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    async with hold_lock(tmp_path, "DATA_DIR"):
        await fail_to_lock(tmp_path, "DATA_DIR", "another daemon")
