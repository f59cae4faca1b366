"""`kill -9` of the daemon at every named point and at random moments, on fake machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.chaos.refusals import refuse
from tests.chaos.soak import soak
from tests.chaos.sweep import sweep

SEED = 4
"""The same faults each time, at other moments all the same; `just chaos --seed` tries others."""
KILLS = 104
BUILDS = 1000
MOST_UNREACHED = 0.1
"""Of the points: some are rare, and a busy host comes to few of them within a life."""


async def test_killed_daemon_loses_no_build_and_leaves_nothing(
    root: Path, tell: Callable[[str], None]
) -> None:
    report = await sweep(root, kills=KILLS, seed=SEED)
    tell(str(report))
    assert report.broken == []
    assert report.kills >= 100
    unreached = report.planned - report.reached
    assert len(unreached) <= MOST_UNREACHED * len(report.planned), unreached


async def test_host_that_refuses_calls_crashes_nothing_and_makes_no_lies(root: Path) -> None:
    result = await refuse(root, seed=SEED)
    print(result)  # noqa: T201 - of a failure: each answer
    assert result.broken == []
    assert result.crashes == []
    assert len(result.refused) > 20


async def test_a_thousand_builds_leave_the_daemon_as_it_was(
    root: Path, tell: Callable[[str], None]
) -> None:
    result = await soak(root, builds=BUILDS)
    tell(str(result))
    assert result.grown == []
