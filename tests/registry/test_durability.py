"""`kill -9` at every step that touches the disk, and what is found afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_registry_that_is_killed_at_any_step_is_in_order_afterwards(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.registry.victim", str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = int(done.stdout.split()[0])
    assert rounds > 50, "the script must be killed at many points"
