"""What the registry's tests share. Real time here: threads and sockets are real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from supervisor.registry import stamps
from tests.registry.client import Client
from tests.registry.serve import Served, api_token, open_registry

PATIENCE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def no_file_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files that tests damage count as damaged at once, not as being written."""
    monkeypatch.setattr(stamps, "YOUNG_SECONDS", 0.0)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A registry without a listener."""
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_registry(tmp_path / "data") as registry:
            yield registry


@pytest.fixture
def client(served: Served) -> Client:
    """The tenant `acme`, with an API token."""
    return Client(served.app, api_token())
