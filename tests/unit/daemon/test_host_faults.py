"""What an operator is told when the host does not let the daemon start."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from supervisor.config import Accelerator
from supervisor.daemon.cli import EXIT_FAILED, EXIT_USAGE
from supervisor.errors import ConfigError
from supervisor.model.image import BuilderImage
from supervisor.vm.qemu import QemuConfig, start_hypervisor

LONGEST_SECONDS = 60
MAKE_READ_ONLY = 'mount --bind "$DATA_DIR" "$DATA_DIR" && mount -o remount,bind,ro "$DATA_DIR"'
FILL = (
    'mount -t tmpfs -o size=64k none "$DATA_DIR"'
    '; mkdir -p "$DATA_DIR/builds" "$DATA_DIR/registry"'
    '; head -c 1M /dev/zero >"$DATA_DIR/filler" 2>/dev/null || true'
)


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory with a short name: sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="hm-", dir="/tmp") as name:
        yield Path(name)


async def start_on(root: Path, change: str) -> tuple[int, str]:
    """Run a daemon behind `change`, in a mount namespace; return its status and what it said."""
    (root / "data").mkdir()
    own_users = [] if os.geteuid() == 0 else ["--map-root-user"]
    environment = {
        "PATH": os.environ["PATH"],
        "DATA_DIR": str(root / "data"),
        "RUNTIME_DIR": str(root / "run"),
        "HOST": "none",
        "METRICS_ADDRESS": "none",
    }
    daemon = [sys.executable, "-m", "supervisor.daemon", "run"]
    with trio.fail_after(LONGEST_SECONDS):
        done = await trio.run_process(
            ["unshare", *own_users, "--mount", "sh", "-ec", f'{change}; exec "$@"', "sh", *daemon],
            env=environment,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    return done.returncode, done.stderr.decode()


async def test_a_read_only_data_directory_is_refused_as_such(root: Path) -> None:
    status, said = await start_on(root, MAKE_READ_ONLY)
    assert status == EXIT_USAGE, said
    assert f"{root}/data" in said
    assert "read-only file system" in said
    assert "Traceback" not in said


async def test_a_full_disk_under_a_new_database_is_told_as_such(root: Path) -> None:
    status, said = await start_on(root, FILL)
    assert status in (EXIT_USAGE, EXIT_FAILED), said
    assert f"{root}/data" in said
    assert "full" in said or "No space left on device" in said, said
    assert "Traceback" not in said


async def test_all_programs_that_are_missing_are_named_before_anything_boots(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(root))
    nothing = root / "nothing"
    image = BuilderImage("a", "b", nothing, "", nothing, nothing, nothing, "")
    config = QemuConfig(root, root, image, Accelerator.TCG, stop_grace=1, probe_timeout=1)
    with pytest.raises(ConfigError, match=r"qemu-system-x86_64, vhost-device-vsock.*run setup"):
        await start_hypervisor(config, trio.CapacityLimiter(1))
