"""One daemon for each directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from supervisor.daemon.lock import hold_lock
from supervisor.errors import ConfigError


def test_a_second_daemon_is_told_who_is_there_and_what_to_set(tmp_path: Path) -> None:
    with (
        hold_lock(tmp_path, "RUNTIME_DIR"),
        pytest.raises(ConfigError, match=rf"process {os.getpid()}\b.*RUNTIME_DIR"),
        hold_lock(tmp_path, "RUNTIME_DIR"),
    ):
        pytest.fail("two daemons hold the lock")
    with hold_lock(tmp_path, "RUNTIME_DIR"):
        pass


def test_a_lock_that_cannot_be_opened_is_told_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with (
        pytest.raises(ConfigError, match=r"lock.*cannot be opened: Is a directory.*DATA_DIR"),
        hold_lock(tmp_path, "DATA_DIR"),
    ):
        pytest.fail("a directory is no lock")


def test_a_full_disk_does_not_keep_the_lock_from_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with (
        hold_lock(tmp_path, "DATA_DIR"),
        pytest.raises(ConfigError, match="another daemon"),
        hold_lock(tmp_path, "DATA_DIR"),
    ):
        pytest.fail("two daemons hold the lock")
