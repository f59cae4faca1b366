"""One daemon for each directory."""

from __future__ import annotations

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
