"""What holds for every suite."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# A busy machine is no failure of a test: how long an example takes is not asserted.
settings.register_profile("hypeman", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hypeman")

OF_MACHINES = ("tests/e2e/", "tests/contract/", "tests/systemd/", "tests/images/")


class MachinesApart(LoadScopeScheduling):  # type: ignore[misc]
    """Tests of real machines follow each other in one process; beside it, others run all the rest.

    Two emulated machines at a time would only slow each other down. pytest-xdist 3.8 has groups for
    this (`xdist_group`), which pytest 9.2 loses: it no longer lets a plugin rename a test.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "machines" if nodeid.startswith(OF_MACHINES) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> MachinesApart:
    """Give tests out by the rule above; the largest group goes first."""
    return MachinesApart(config, log)
