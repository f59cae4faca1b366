"""What the command line loads, and when."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import gc, sys
from supervisor.daemon import cli

def loaded():
    return [name in sys.modules for name in ("supervisor.daemon.app", "httpcore2")]

print(loaded())
cli._load_daemon()
print(loaded(), gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


def test_only_the_daemon_itself_loads_what_it_is_made_of_and_nothing_that_it_may_never_need() -> (
    None
):
    """Else `config check` would take as long as a start, and each start longer than it has to."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["[False, False]", "[True, False] True True"]
