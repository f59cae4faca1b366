"""A real lack of descriptors and of disk: in a process of its own, which is put into namespaces."""

from __future__ import annotations

import sys
from collections.abc import Callable

import trio

LONGEST_SECONDS = 120


async def test_a_host_that_is_short_for_a_while_is_survived_with_no_crash_and_no_lie(
    tell: Callable[[str], None],
) -> None:
    with trio.fail_after(LONGEST_SECONDS):
        done = await trio.run_process(
            [sys.executable, "-m", "tests.chaos.shortage"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    said = done.stdout.decode() + done.stderr.decode()
    tell(said.strip())
    assert done.returncode == 0, said
