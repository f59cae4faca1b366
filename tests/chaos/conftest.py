"""What the tests of this directory share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.places import place


@pytest.fixture
def root() -> Iterator[Path]:
    with place() as directory:
        yield directory
