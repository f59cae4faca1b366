"""Fixtures of the actors' suites."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.threads import inline_threads

__all__ = ["data_dir", "inline_threads"]

_MEMORY = Path("/dev/shm")


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory in memory, if there is such a thing: syncing thousands of times is free."""
    if not _MEMORY.is_dir():
        yield tmp_path
        return
    directory = Path(tempfile.mkdtemp(prefix="hypeman-test-", dir=_MEMORY))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
