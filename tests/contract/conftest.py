"""The hypervisors that the contract is held against."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from tests.contract.harness import FakeHarness, Harness, RealHarness
from tests.machines import image_running, path_with_tools, real_image


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


@pytest.fixture(autouse=True)
async def bounded() -> AsyncIterator[None]:
    """No test here may hang the suite: a fixture that crashes cancels its test."""

    async def fail_late() -> None:
        await trio.sleep(120)
        pytest.fail("the test took more than two minutes")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail_late)
        yield
        nursery.cancel_scope.cancel(reason="the test is over")
