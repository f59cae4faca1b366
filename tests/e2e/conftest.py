"""Fixtures that run real daemons with real machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon with capacity 2 for all tests that do not stop it; it must leave nothing."""
    daemon = Daemon(tmp_path_factory.mktemp("hm"))
    daemon.start()
    try:
        yield daemon
        daemon.wait_clean(10)
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
