"""A test of real processes on the real clock could hang for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit import bound_tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    bound_tests(items, Path(__file__).with_name("test_process.py"), 60)
