"""What holds for every suite."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# A busy machine is no failure of a test: how long an example takes is not asserted.
settings.register_profile("hypeman", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hypeman")

OF_MACHINES = ("tests/e2e/", "tests/contract/", "tests/systemd/", "tests/images/")


@pytest.fixture(scope="session")
def tell(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Print a line that is seen although the test passes: numbers to be read."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def tell(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", file=sys.stderr, flush=True)  # noqa: T201 - the numbers

    return tell


class FilesOfMachinesFirst(LoadScopeScheduling):  # type: ignore[misc]
    """The tests of a file that boots machines follow each other in one process, as they share a
    daemon; these files come first, for they take the longest, and all others go one by one.

    pytest-xdist 3.8 has groups for this (`xdist_group`), which pytest 9.2 loses: it no longer lets
    a plugin rename a test.
    """

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.split("::")[0] if nodeid.startswith(OF_MACHINES) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesOfMachinesFirst:
    """Give tests out by the rule above, in the order of their collection."""
    config.option.loadscopereorder = False
    return FilesOfMachinesFirst(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(OF_MACHINES))
