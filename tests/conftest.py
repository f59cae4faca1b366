"""What holds for every suite."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure of a test: how long an example takes is not asserted.
settings.register_profile("hypeman", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hypeman")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of real machines come first and follow each other in one process.

    Beside them a second process runs all others: two emulated machines at a time would only slow
    each other down, and the two share one daemon.
    """
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
    for item in items:
        if item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.xdist_group("machines"))
