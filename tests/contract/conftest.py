"""The hypervisors that the contract is held against."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.contract.harness import FakeHarness, Harness, RealHarness
from tests.kit import bound_tests
from tests.machines import image_running, path_with_tools, real_image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    bound_tests(items, Path(__file__).parent, 120)


@pytest.fixture(scope="session")
def machines_root() -> Iterator[Path]:
    """A directory with a short name: sockets are made in it."""
    path = Path(tempfile.mkdtemp(prefix="hm-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture(params=["fake", pytest.param("qemu", marks=pytest.mark.e2e)])
async def harness(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, machines_root: Path
) -> AsyncIterator[Harness]:
    """A hypervisor whose guests run the program of these tests."""
    if request.param == "fake":
        yield FakeHarness()
        return
    monkeypatch.setenv("PATH", path_with_tools())
    image = image_running(Path(__file__).with_name("guest.py"), machines_root)
    yield await RealHarness.start(machines_root, image)


@pytest.fixture
async def builder(monkeypatch: pytest.MonkeyPatch, machines_root: Path) -> RealHarness:
    """The real hypervisor with the builder image as it is."""
    monkeypatch.setenv("PATH", path_with_tools())
    return await RealHarness.start(machines_root, real_image())
