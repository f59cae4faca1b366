"""Fixtures that run real daemons with real machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.soak import grown_between
from tests.chaos.vitals import count_rows, measure
from tests.e2e.daemon import Daemon

MOST_GROWTH_KIB = 64 << 10
"""Of the shared daemon's memory, from its start on: what it loads and keeps for all builds."""
MOST_MORE = {"descriptors": 16, "threads": 64, "children": 0}
"""Connections that are just ending, and as many worker threads as there may be: whoever leaks one
for each build has more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, tell: Callable[[str], None]
) -> Iterator[Daemon]:
    """One daemon with capacity 2 for all tests that do not stop it; it must leave nothing."""
    daemon = Daemon(tmp_path_factory.mktemp("hm"))
    daemon.start()
    assert daemon.process is not None
    before = measure(daemon.process.pid)
    try:
        yield daemon
        daemon.wait_clean(10)
        after, rows = measure(daemon.process.pid), count_rows(daemon.data_dir / "hypeman.db")
        tell(f"the daemon of all: {before} → {after}, rows {rows}")
        grown = grown_between(before, after, most_kib=MOST_GROWTH_KIB, most_more=MOST_MORE)
        assert grown == []
    finally:
        status = daemon.stop()
    assert status == 0, daemon.log_tail()
    assert daemon.machine_directories() == []


@pytest.fixture(autouse=True)
def _nothing_is_left_by_a_test(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "daemon" in request.fixturenames:
        shared: Daemon = request.getfixturevalue("daemon")
        shared.wait_clean(10)
